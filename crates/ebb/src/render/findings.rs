//! Findings for people: the answer first, then what it rests on, what it is not, and what to type next.

use super::{CAUSE, COMMAND, FAINT, GOOD, Page, columns, heading, labelled, wrap};
use crate::escape::escape;
use ebbtide_explain::{Finding, Lever};
use ebbtide_observe::Bytes;

/// Evidence shown of each finding after the first, unless all is asked for.
const EVIDENCE: usize = 3;

/// Appends the findings, or that there are none.
pub(crate) fn findings(out: &mut String, page: Page, findings: &[Finding], all: bool) {
    if findings.is_empty() {
        out.push_str(&format!("\n{GOOD}Nothing is wrong.{GOOD:#}\n"));
        return;
    }
    heading(out, if findings.len() == 1 { "One finding" } else { "Findings" });
    for (i, finding) in findings.iter().enumerate() {
        one(out, page, i + 1, finding, all || i == 0);
    }
}

fn one(out: &mut String, page: Page, number: usize, finding: &Finding, all: bool) {
    let sure = match finding.confidence {
        c if c >= 0.9 => "",
        c if c >= 0.7 => ", likely",
        _ => ", not sure",
    };
    let back = if finding.returnable > Bytes::ZERO {
        format!("; {GOOD}{} can be given back{GOOD:#}", finding.returnable)
    } else {
        String::new()
    };
    let bytes = if finding.bytes > Bytes::ZERO { format!(": {}", finding.bytes) } else { String::new() };
    let head = format!("{CAUSE}{}{CAUSE:#}{bytes}{sure}{back}", finding.cause);
    labelled(out, page, 0, 3, format!("{number:>3}"), &head);
    wrap(out, page, 4, 4, &escape(&finding.summary));
    let shown = if all { finding.evidence.len() } else { EVIDENCE };
    for item in finding.evidence.iter().take(shown) {
        let says = format!("{}: {}", escape(&item.source), escape(&item.says));
        labelled(out, page, 6, 4, format!("{FAINT}seen{FAINT:#}"), &says);
    }
    for item in finding.not.iter().take(if all { usize::MAX } else { 1 }) {
        let says = format!("{}: {}", item.cause, escape(&item.because));
        labelled(out, page, 6, 4, format!("{FAINT}not{FAINT:#}"), &says);
    }
    for lever in &finding.levers {
        one_lever(out, page, lever);
    }
}

/// The command on a line of its own, whole; its risk beside it where that fits.
fn one_lever(out: &mut String, page: Page, lever: &Lever) {
    let (command, risk) = (escape(&lever.command), escape(&lever.risk));
    out.push_str(&format!("      {COMMAND}{command}{COMMAND:#}"));
    if risk.is_empty() {
        out.push('\n');
    } else if 6 + columns(&command) + 2 + columns(&risk) + 2 <= page.width {
        out.push_str(&format!("  {FAINT}({risk}){FAINT:#}\n"));
    } else {
        out.push('\n');
        wrap(out, page, 8, 8, &format!("{FAINT}{risk}{FAINT:#}"));
    }
}
