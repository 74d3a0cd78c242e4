//! What the host report and `explain` end in: one shape for host, process and cgroup, as text and as JSON.

#[cfg(test)]
mod golden;
mod heaps;

pub(crate) use heaps::Heaps;

use crate::escape::escape;
use crate::render::{self, FAINT, HEADING, Page};
use ebbtide_explain::growth::Growth;
use ebbtide_explain::{Finding, Ledger};
use ebbtide_observe::{Bytes, Unread};
use serde::Serialize;
use std::process::ExitCode;

/// The JSON contract (schema/explain.schema.json).
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema_version: u32,
    pub(crate) target: Target,
    pub(crate) ledger: Ledger,
    /// Figures that overlap the ledger, in the order they are shown in.
    #[serde(skip_serializing_if = "Beside::is_empty")]
    pub(crate) beside: Beside,
    /// Of a host whose processes were looked into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heaps: Option<Heaps>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) growth: Option<Growth>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) unread: Vec<Unread>,
}

/// What the report is about.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Target {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<String>,
    /// What the total of the ledger is called.
    #[serde(skip)]
    pub(crate) total: &'static str,
}

impl Target {
    /// The cgroup at `path`.
    pub(crate) fn cgroup(path: String) -> Target {
        Target { kind: "cgroup", name: path.clone(), path: Some(path), total: "charged", ..Target::default() }
    }
}

/// Named figures beside the ledger, each with a remark for people.
#[derive(Debug, Default)]
pub(crate) struct Beside(pub(crate) Vec<(&'static str, Bytes, &'static str)>);

impl Beside {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Beside {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, bytes, _)| (format!("{name}_bytes"), bytes)))
    }
}

impl Report {
    pub(crate) fn new(target: Target, ledger: Ledger, findings: Vec<Finding>, unread: Vec<Unread>) -> Report {
        Report {
            schema_version: 1,
            target,
            ledger,
            beside: Beside::default(),
            heaps: None,
            growth: None,
            findings,
            unread,
        }
    }

    /// The report of a watch that its target did not outlive.
    pub(crate) fn of_the_beginning(mut self, error: &anyhow::Error) -> Report {
        self.unread.push(Unread { what: "the end of the watch".to_owned(), why: format!("{error:#}") });
        self
    }

    /// The same report with what was seen over time; its findings come first, and an earlier one of the same
    /// cause gives way.
    pub(crate) fn with_growth(mut self, growth: Option<(Growth, Vec<Finding>)>) -> Report {
        if let Some((growth, mut findings)) = growth {
            self.findings.retain(|old| !findings.iter().any(|new| new.cause == old.cause));
            findings.append(&mut self.findings);
            self.findings = ebbtide_explain::rules::ordered(findings);
            self.growth = Some(growth);
        }
        self
    }

    /// Prints the report; the exit status says whether there are findings.
    pub(crate) fn print(&self, json: bool, all: bool) -> anyhow::Result<ExitCode> {
        if json {
            render::print_json(self)?;
        } else {
            render::print(&self.text(Page::of_stdout(), all))?;
        }
        Ok(if self.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn text(&self, page: Page, all: bool) -> String {
        let mut out = String::new();
        self.head(&mut out, page);
        out.push('\n');
        render::ledger(&mut out, page, &self.ledger, all);
        self.beside(&mut out, page);
        if let Some(heaps) = &self.heaps {
            heaps.text(&mut out, page, all);
        }
        if let Some(growth) = &self.growth {
            render::growth(&mut out, page, growth, all);
        }
        render::findings(&mut out, page, &self.findings, all);
        render::unread(&mut out, page, &self.unread);
        out
    }

    /// The target's name and total, on two lines where the name is long.
    fn head(&self, out: &mut String, page: Page) {
        let name = escape(&self.target.name);
        let mut total = format!("{} {}", self.ledger.total, self.target.total);
        if let Some(kernel) = &self.target.kernel {
            total.push_str(&format!(", Linux {}", escape(kernel)));
        }
        if render::columns(&name) + 2 + render::columns(&total) <= page.width {
            out.push_str(&format!("{HEADING}{name}{HEADING:#}  {total}\n"));
        } else {
            render::wrap(out, page, 0, 0, &format!("{HEADING}{name}{HEADING:#}"));
            render::wrap(out, page, 2, 2, &total);
        }
    }

    fn beside(&self, out: &mut String, page: Page) {
        let shown = self.beside.0.iter().filter(|(_, bytes, _)| *bytes > Bytes::ZERO);
        let mut lines = shown.peekable();
        if lines.peek().is_none() {
            return;
        }
        out.push('\n');
        for (name, bytes, remark) in lines {
            let figure = format!("{:<12} {:>8}", name.replace('_', " "), bytes.to_string());
            render::labelled(out, page, 2, 22, figure, &format!("{FAINT}{remark}{FAINT:#}"));
        }
    }
}
