//! Findings for people: the answer first, then what it rests on, what it is not, and what to type next.

use super::{CAUSE, COMMAND, FAINT, GOOD, Page, heading, wrap};
use crate::escape::escape;
use ebbtide_explain::Finding;
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
    let bytes = if finding.bytes > Bytes::ZERO { format!("  {}", finding.bytes) } else { String::new() };
    out.push_str(&format!("{number:>3} {CAUSE}{}{CAUSE:#}{bytes}{sure}{back}\n", finding.cause));
    wrap(out, page, 4, 4, &escape(&finding.summary));
    let shown = if all { finding.evidence.len() } else { EVIDENCE };
    for item in finding.evidence.iter().take(shown) {
        labelled(out, page, "seen", &format!("{}: {}", escape(&item.source), escape(&item.says)));
    }
    for item in finding.not.iter().take(if all { usize::MAX } else { 1 }) {
        labelled(out, page, "not", &format!("{}: {}", item.cause, escape(&item.because)));
    }
    for lever in &finding.levers {
        let risk = if lever.risk.is_empty() {
            String::new()
        } else {
            format!("  {FAINT}({}){FAINT:#}", escape(&lever.risk))
        };
        out.push_str(&format!("      {COMMAND}{}{COMMAND:#}", escape(&lever.command)));
        if super::columns(&lever.command) + super::columns(&lever.risk) + 10 <= page.width {
            out.push_str(&risk);
            out.push('\n');
        } else {
            out.push('\n');
            wrap(out, page, 8, 8, &escape(&lever.risk));
        }
    }
}

fn labelled(out: &mut String, page: Page, label: &str, text: &str) {
    let mut block = String::new();
    wrap(&mut block, page, 11, 11, text);
    let body = block.trim_start();
    out.push_str(&format!("      {FAINT}{label:<4}{FAINT:#} {body}"));
}
