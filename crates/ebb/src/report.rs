//! What the host report and `explain` end in: one shape for host, process and cgroup, as text and as JSON.

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
            growth: None,
            findings,
            unread,
        }
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
        let escape = crate::escape::escape;
        let mut out = format!("{HEADING}{}{HEADING:#}", escape(&self.target.name));
        out.push_str(&format!("  {} {}", self.ledger.total, self.target.total));
        if let Some(kernel) = &self.target.kernel {
            out.push_str(&format!(", Linux {}", escape(kernel)));
        }
        out.push_str("\n\n");
        render::ledger(&mut out, page, &self.ledger, all);
        self.beside(&mut out, page);
        if let Some(growth) = &self.growth {
            render::growth(&mut out, page, growth, all);
        }
        render::findings(&mut out, page, &self.findings, all);
        render::unread(&mut out, page, &self.unread);
        out
    }

    fn beside(&self, out: &mut String, page: Page) {
        let shown = self.beside.0.iter().filter(|(_, bytes, _)| *bytes > Bytes::ZERO);
        let mut lines = shown.peekable();
        if lines.peek().is_none() {
            return;
        }
        out.push('\n');
        for (name, bytes, remark) in lines {
            let name = name.replace('_', " ");
            let remark = render::cut(remark, page.width.saturating_sub(32));
            out.push_str(&format!("  {name:<14} {:>10}  {FAINT}{remark}{FAINT:#}\n", bytes.to_string()));
        }
    }
}
