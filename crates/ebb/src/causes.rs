//! `ebb causes [ID]`: the pages of crates/explain/causes, like a compiler's `--explain`.

use crate::cli::CausesArgs;
use crate::render::{self, CAUSE, HEADING};
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
    let text = match chosen {
        Some(cause) => page(cause.page()),
        None => list(),
    };
    render::print(&text)?;
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

fn list() -> String {
    let width = Cause::ALL.iter().map(|cause| cause.id().len()).max().unwrap_or(0);
    let mut out = String::new();
    for cause in Cause::ALL {
        out.push_str(&format!("{CAUSE}{:width$}{CAUSE:#}  {}\n", cause.id(), cause.line()));
    }
    out
}

/// Markdown as it is, with its headings in bold.
fn page(markdown: &str) -> String {
    let mut out = String::new();
    for line in markdown.lines() {
        match line.trim_start_matches('#') {
            title if title.len() < line.len() => {
                out.push_str(&format!("{HEADING}{}{HEADING:#}\n", title.trim_start()))
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
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
}
