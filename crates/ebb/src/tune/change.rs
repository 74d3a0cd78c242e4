//! `ebb tune SETTING=VALUE`: what a change would do, the change, the wait for its end, the way back.

use super::{TuneArgs, guardian};
use crate::escape::escape;
use crate::render::{self, BAD, CAUSE, COMMAND, FAINT, GOOD, Page};
use ebbtide_observe::Root;
use ebbtide_reclaim::tune::{
    Applied, Change, Measures, Options, Outcome, Plan, Planned, Record, Remark, Setting, Store, Undone,
    Verdict, apply, prepare, undo as set_back,
};
use ebbtide_sys::interrupt::Interrupts;
use serde::Serialize;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

/// The JSON contract (schema/tune.schema.json), `kind` "plan", "apply" and "undo".
#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    kind: &'static str,
    changes: Vec<JsonChange<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Measures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Measures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a Record>,
    #[serde(skip_serializing_if = "Option::is_none")]
    undone: Option<&'a [Undone]>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct JsonChange<'a> {
    setting: &'a str,
    present: &'a str,
    proposed: &'a str,
    does: &'a str,
    danger: &'a str,
    source: &'a str,
    #[serde(flatten)]
    remark: &'a Remark,
}

fn json_changes(plan: &Plan) -> Vec<JsonChange<'_>> {
    fn change(planned: &Planned) -> JsonChange<'_> {
        let Planned { setting, present, wanted, remark } = planned;
        let (setting, does, danger, source) = (setting.name, setting.does, setting.danger, setting.source);
        JsonChange { setting, present, proposed: wanted, does, danger, source, remark }
    }
    plan.changes.iter().map(change).collect()
}

pub(super) fn run(args: &TuneArgs, root: &Root, store: &Store) -> anyhow::Result<ExitCode> {
    let plan = prepare(root, &args.assignments)?;
    if !args.apply {
        return planned(args, &plan);
    }
    // From here on a Ctrl-C is a wish to set back, not an end in the middle of it.
    let signals = Interrupts::catch()?;
    let options = Options { force: args.force, time: args.time, persist: args.persist };
    let mut guard = None;
    let absolute = args.root.as_ref().map(std::path::absolute).transpose()?;
    let applied = apply(root, store, &plan, options, |record| {
        if record.deadline.is_some() {
            guard = Some(guardian::start(absolute.as_deref(), record)?);
        }
        Ok(())
    })?;
    let page = Page::of_stdout();
    // That nobody could be told is no reason not to wait.
    let told = match args.output.json {
        true => Ok(()),
        false => render::print(&done(page, args, &plan, &applied)),
    };
    let mut undone = None;
    if let (Some(guard), Some(record), false) = (guard, &applied.record, args.detach) {
        guardian::wait(guard, &signals)?;
        undone = Some(after_guardian(root, store, record)?);
    }
    told?;
    if args.output.json {
        render::print_json(&Json {
            schema_version: 1,
            kind: "apply",
            changes: json_changes(&plan),
            before: Some(applied.before),
            after: Some(applied.after),
            record: applied.record.as_ref(),
            undone: undone.as_deref(),
            notes: &applied.notes,
        })?;
    } else if let Some(undone) = &undone {
        render::print(&outcomes(page, undone))?;
    }
    Ok(undone.as_deref().map_or(ExitCode::SUCCESS, exit_code))
}

/// What became of a record whose guardian has ended: it has done its work and the record is gone, or it was killed and
/// the work is done here.
fn after_guardian(root: &Root, store: &Store, record: &Record) -> anyhow::Result<Vec<Undone>> {
    let here = set_back(root, store, Some(&record.id), false)?;
    if !here.is_empty() {
        return Ok(here);
    }
    let by_guardian = |change: &Change| {
        let present = Setting::known(&change.setting).ok().and_then(|setting| setting.read(root).ok());
        Undone {
            record: record.id.clone(),
            setting: change.setting.clone(),
            before: change.before.clone(),
            set: change.set.clone(),
            back: change.back.clone(),
            outcome: match present {
                Some(present) if present != change.before => Outcome::Changed { present },
                _ => Outcome::Restored,
            },
            note: None,
        }
    };
    Ok(record.changes.iter().rev().map(by_guardian).collect())
}

fn planned(args: &TuneArgs, plan: &Plan) -> anyhow::Result<ExitCode> {
    if args.output.json {
        let (changes, before) = (json_changes(plan), Some(plan.before));
        let (after, record, undone) = (None, None, None);
        render::print_json(&Json {
            schema_version: 1,
            kind: "plan",
            changes,
            before,
            after,
            record,
            undone,
            notes: &[],
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = Page::of_stdout();
    let mut out = String::new();
    for planned in &plan.changes {
        let (setting, remark) = (planned.setting, &planned.remark);
        out.push_str(&format!(
            "{CAUSE}{}{CAUSE:#}  {} -> {}\n",
            setting.name,
            escape(&planned.present),
            planned.wanted
        ));
        let mut line = |label: &str, text: &str| {
            render::labelled(&mut out, page, 2, 7, format!("{FAINT}{label}{FAINT:#}"), text);
        };
        line("here", &escape(&remark.says));
        line("does", setting.does);
        line("danger", setting.danger);
        line("source", setting.source);
    }
    let words = args.assignments.join(" ");
    let harm = plan.changes.iter().any(|planned| planned.remark.verdict == Verdict::Harmful);
    let but = if harm { ", which --force alone does as it would do harm here" } else { "" };
    let _ = writeln!(out, "\nNothing was changed. To change it for an hour{but}:");
    let _ = writeln!(out, "  {COMMAND}ebb tune {} --apply --for 1h{COMMAND:#}", escape(&words));
    render::print(&out)?;
    Ok(ExitCode::SUCCESS)
}

fn done(page: Page, args: &TuneArgs, plan: &Plan, applied: &Applied) -> String {
    let mut out = String::new();
    let Some(record) = &applied.record else {
        return "All of it is so already: nothing was changed.\n".to_owned();
    };
    for change in &record.changes {
        let _ = writeln!(
            out,
            "{CAUSE}{}{CAUSE:#}  {} -> {}",
            escape(&change.setting),
            escape(&change.before),
            escape(&change.set)
        );
        let planned = plan.changes.iter().find(|planned| planned.setting.name == change.setting);
        if let Some(planned) = planned.filter(|planned| planned.remark.verdict != Verdict::Effective) {
            render::wrap(&mut out, page, 2, 2, &escape(&planned.remark.says));
        }
    }
    measures(&mut out, applied, record);
    for note in &applied.notes {
        render::wrap(&mut out, page, 0, 2, &format!("Note: {}", escape(note)));
    }
    let undo = format!("{COMMAND}ebb tune --undo{COMMAND:#}");
    out.push_str(&match args.time {
        _ if args.persist => format!("It lasts over restarts. To set it back: {undo}\n"),
        None => format!("It lasts until the next restart. To set it back: {undo}\n"),
        Some(time) if args.detach => format!("It is set back in {}, or by {undo}\n", human(time)),
        Some(time) => format!("It is set back in {}, or at Ctrl-C, or by {undo}\n", human(time)),
    });
    out
}

fn measures(out: &mut String, applied: &Applied, record: &Record) {
    let settings = record.changes.iter().map(|change| change.setting.as_str());
    let rows = applied.before.beside(&applied.after, settings);
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, before, after) in rows {
        let _ = writeln!(out, "  {FAINT}{name:width$}{FAINT:#}  {before} -> {after}");
    }
}

pub(super) fn human(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 5400.0 => format!("{:.1} h", seconds / 3600.0),
        seconds if seconds >= 90.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds >= 1.0 => format!("{seconds:.0} s"),
        seconds => format!("{:.0} ms", seconds * 1000.0),
    }
}

pub(super) fn undo(args: &TuneArgs, root: &Root, store: &Store) -> anyhow::Result<ExitCode> {
    let undone = set_back(root, store, None, args.force)?;
    let broken = store.pending().broken;
    let notes: Vec<String> =
        broken.iter().map(|(path, why)| format!("{} is no undo record: {why}", path.display())).collect();
    if args.output.json {
        render::print_json(&Json {
            schema_version: 1,
            kind: "undo",
            changes: Vec::new(),
            before: None,
            after: None,
            record: None,
            undone: Some(&undone),
            notes: &notes,
        })?;
    } else {
        let page = Page::of_stdout();
        let mut out = if undone.is_empty() {
            "There is nothing to undo.\n".to_owned()
        } else {
            outcomes(page, &undone)
        };
        notes.iter().for_each(|note| render::wrap(&mut out, page, 0, 2, &escape(note)));
        render::print(&out)?;
    }
    Ok(if notes.is_empty() { exit_code(&undone) } else { ExitCode::from(2) })
}

fn exit_code(undone: &[Undone]) -> ExitCode {
    if undone.iter().all(Undone::is_done) { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn outcomes(page: Page, undone: &[Undone]) -> String {
    let mut out = String::new();
    for Undone { setting, before, set, back, outcome, note, .. } in undone {
        // Its counterpart's value, where that was in force.
        let back = match back.setting == *setting {
            true => escape(before).into_owned(),
            false => escape(&format!("{} = {}", back.setting, back.value)).into_owned(),
        };
        let text = match outcome {
            Outcome::Restored => format!("{GOOD}set back{GOOD:#} to {back}"),
            Outcome::Already => format!("is {} already", escape(before)),
            Outcome::Rebooted => "was undone by the restart of the machine".to_owned(),
            Outcome::Changed { present } => format!(
                "{BAD}not set back{BAD:#}: ebb made it {}, but it is {} now, so somebody else has changed it since; \
                 'ebb tune --undo --force' makes it {} all the same",
                escape(set),
                escape(present),
                escape(before)
            ),
            Outcome::Failed { why } => format!("{BAD}not set back{BAD:#}: {}", escape(why)),
        };
        render::wrap(&mut out, page, 0, 2, &format!("{} {text}", escape(setting)));
        if let Some(note) = note {
            render::wrap(&mut out, page, 2, 2, &escape(note));
        }
    }
    out
}
