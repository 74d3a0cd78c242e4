//! `ebb causes [ID]`: the pages of crates/explain/causes, like a compiler's `--explain`.

use crate::cli::CausesArgs;
use crate::render::{self, CAUSE, COMMAND, HEADING, Page};
use ebbtide_explain::Cause;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Serialize)]
struct Entry {
    id: &'static str,
    line: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<&'static str>,
}

#[derive(Serialize)]
struct Json {
    schema_version: u32,
    causes: Vec<Entry>,
}

pub(crate) fn run(args: &CausesArgs) -> anyhow::Result<ExitCode> {
    let chosen = args.id.as_deref().map(find).transpose()?;
    if args.output.json {
        let entry =
            |cause: &Cause| Entry { id: cause.id(), line: cause.line(), page: chosen.map(|c| c.page()) };
        let causes = chosen.as_ref().map_or(Cause::ALL, std::slice::from_ref).iter().map(entry).collect();
        render::print_json(&Json { schema_version: 1, causes })?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = Page::of_stdout();
    render::print(&chosen.map_or_else(|| list(page), |cause| text(page, cause.page())))?;
    Ok(ExitCode::SUCCESS)
}

/// The cause of that id; else an error that names the nearest ones.
fn find(id: &str) -> anyhow::Result<Cause> {
    let wanted = id.to_lowercase().replace(['_', ' '], "-");
    Cause::from_id(&wanted).ok_or_else(|| {
        let near: Vec<&str> = Cause::ALL
            .iter()
            .map(|cause| cause.id())
            .filter(|id| wanted.split('-').any(|word| word.len() > 2 && id.contains(word)))
            .collect();
        let hint = if near.is_empty() { String::new() } else { format!(" Like it: {}.", near.join(", ")) };
        anyhow::anyhow!("there is no cause '{id}'.{hint} 'ebb causes' lists them all")
    })
}

fn list(page: Page) -> String {
    let width = Cause::ALL.iter().map(|cause| cause.id().len()).max().unwrap_or(0);
    let mut out = String::new();
    for cause in Cause::ALL {
        let id = format!("{CAUSE}{cause}{CAUSE:#}");
        render::labelled(&mut out, page, 0, width + 1, id, cause.line());
    }
    out
}

/// A page's Markdown: headings in bold, paragraphs laid out for the page, indented commands as they are.
fn text(page: Page, markdown: &str) -> String {
    let mut out = String::new();
    let mut paragraph = String::new();
    for line in markdown.lines().chain([""]) {
        let title = line.trim_start_matches('#');
        let apart = title.is_empty() || title.len() < line.len() || line.starts_with("    ");
        if (apart || line.starts_with("https:")) && !paragraph.is_empty() {
            render::wrap(&mut out, page, 0, 0, &std::mem::take(&mut paragraph));
        }
        match apart {
            false => paragraph.extend([line, " "]),
            true if title.len() < line.len() => {
                render::wrap(&mut out, page, 0, 2, &format!("{HEADING}{}{HEADING:#}", title.trim_start()))
            }
            true => out.push_str(&format!("{COMMAND}{line}{COMMAND:#}\n")),
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_however_they_are_written() {
        assert_eq!(find("Slab_Reclaimable").unwrap(), Cause::SlabReclaimable);
        let error = find("slab").unwrap_err().to_string();
        assert!(error.contains("slab-reclaimable"), "{error}");
    }

    #[test]
    fn pages_keep_their_words_and_commands_at_every_width() {
        for (cause, width) in Cause::ALL.iter().flat_map(|cause| [(cause, 60), (cause, 100)]) {
            let shown = anstream::adapter::strip_str(&text(Page { width }, cause.page())).to_string();
            let words = |text: &str| text.replace('#', "").split_whitespace().collect::<String>();
            assert_eq!(words(&shown), words(cause.page()));
            let commands = |text: &str| {
                let lines = text.lines().filter(|line| line.starts_with("    "));
                lines.map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(commands(&shown), commands(cause.page()));
            let prose = shown.lines().filter(|line| !line.starts_with("    "));
            assert!(prose.into_iter().all(|line| line.len() <= width || !line.contains(' ')), "{shown}");
        }
    }
}
