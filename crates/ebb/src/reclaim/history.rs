//! `ebb reclaim --history`: what was given back before, as the journal has it.

use super::text;
use crate::escape::escape;
use crate::render::{self, Align, Page, Table};
use anyhow::Context;
use ebbtide_reclaim::journal::{Entry, History, Journal, Outcome};
use serde::Serialize;
use std::process::ExitCode;

/// The JSON contract (schema/reclaim-history.schema.json).
#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    path: String,
    damaged_lines: u64,
    entries: &'a [Entry],
}

pub(super) fn run(json: bool) -> anyhow::Result<ExitCode> {
    let journal = Journal::of_this_user()
        .context("this user has no home directory, so there is no journal; EBB_STATE names one")?;
    let history =
        journal.read().context("the journal cannot be read; it is kept for each user, root's by root")?;
    let path = journal.path().to_string_lossy().into_owned();
    if json {
        let History { entries, damaged } = &history;
        render::print_json(&Json { schema_version: 1, path, damaged_lines: *damaged, entries })?;
    } else {
        render::print(&shown(Page::of_stdout(), &path, &history))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(page: Page, path: &str, history: &History) -> String {
    let mut out = String::new();
    if history.entries.is_empty() {
        render::wrap(&mut out, page, 0, 2, &format!("Nothing was given back yet, says {}.", escape(path)));
    } else {
        let mut table = Table::new(&[
            ("when", Align::Left),
            ("by", Align::Left),
            ("predicted", Align::Right),
            ("returned", Align::Right),
            ("outcome", Align::Left),
            ("what", Align::Left),
        ]);
        for entry in &history.entries {
            let returned = entry.returned_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
            table.row(vec![
                escape(&entry.at).into_owned(),
                escape(&by(entry)).into_owned(),
                entry.predicted_bytes.to_string(),
                returned,
                outcome(entry.outcome).to_owned(),
                escape(&text::named(&entry.target)).into_owned(),
            ]);
        }
        render::table(&mut out, page, 0, &table);
    }
    if history.damaged > 0 {
        let lines = if history.damaged == 1 { "line" } else { "lines" };
        let text = format!("{} damaged {lines} of {} left out", history.damaged, escape(path));
        render::wrap(&mut out, page, 0, 2, &text);
    }
    out
}

/// Who: the login name beside the user who had the right.
fn by(entry: &Entry) -> String {
    let by = &entry.by;
    let person = by.login.clone().or_else(|| by.sudo_uid.or(by.login_uid).map(|uid| uid.to_string()));
    match person {
        Some(person) if by.uid == 0 && person != "root" && person != "0" => format!("{person} as root"),
        Some(person) => person,
        None => by.uid.to_string(),
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Begun => "no end",
        Outcome::Done => "done",
        Outcome::Short => "short",
        Outcome::Nothing => "nothing",
        Outcome::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::Bytes;
    use ebbtide_reclaim::journal::{By, Target};

    #[test]
    fn a_table_of_what_was_done() {
        let mut entry =
            Entry::begin(Target { kind: "host".into(), name: Some("dentries".into()), ..Target::default() });
        entry.at = "2026-11-21T11:40:07Z".to_owned();
        entry.by = By { uid: 0, login: Some("eve\x1b[2J".to_owned()), ..By::default() };
        let begun = Entry { by: By::default(), ..entry.clone() };
        entry.outcome = Outcome::Done;
        (entry.predicted_bytes, entry.returned_bytes) = (Bytes::from_mib(113), Some(Bytes::from_mib(110)));
        let history = History { entries: vec![entry, begun], damaged: 1 };
        let text = shown(Page { width: 100 }, "/x", &history);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(!text.contains('\x1b'), "{text:?}");
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["when", "by", "predicted", "returned", "outcome", "what"]);
        assert!(rows[1].ends_with(&["113", "MiB", "110", "MiB", "done", "dentries"]), "{text}");
        assert!(rows[2].ends_with(&["0", "0", "B", "-", "no", "end", "dentries"]), "{text}");
        assert!(rows[3].starts_with(&["1", "damaged", "line"]), "{text}");
        assert!(shown(Page { width: 80 }, "/x", &History::default()).starts_with("Nothing"));
    }
}
