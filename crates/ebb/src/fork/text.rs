//! What `ebb fork` prints for people: yes or no, why, and what it would cost.

use super::{Cow, Report};
use crate::render::{BAD, FAINT, GOOD, Page, labelled, unread, wrap};
use ebbtide_observe::Bytes;

/// The report.
pub(super) fn report(page: Page, report: &Report) -> String {
    let mut out = String::new();
    let who = format!("{} (pid {})", report.name, report.pid);
    let answer = match (report.would_succeed, report.errno) {
        (Some(true), _) => format!("{GOOD}fork() of {who} would succeed.{GOOD:#}"),
        (Some(false), errno) => {
            let errno = errno.unwrap_or("an error");
            format!("{BAD}fork() of {who} would fail with {errno}.{BAD:#}")
        }
        (None, _) => format!("Whether fork() of {who} would succeed cannot be told."),
    };
    wrap(&mut out, page, 0, 0, &answer);
    let mut reason = report.reason.clone();
    reason.push('.');
    if let Some(first) = reason.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    wrap(&mut out, page, 0, 0, &reason);
    out.push('\n');
    for (label, text) in lines(report) {
        labelled(&mut out, page, 2, 13, format!("{FAINT}{label}{FAINT:#}"), &text);
    }
    unread(&mut out, page, &report.unread);
    out
}

fn lines(report: &Report) -> Vec<(&'static str, String)> {
    let mut lines = vec![("charge", format!("{} counts for the overcommit rule", report.charge_bytes))];
    lines.push((
        "room to grow",
        match report.headroom_bytes {
            Some(Bytes::ZERO) => "none: a fork is refused already".to_owned(),
            Some(bytes) => format!("{bytes} until a fork would be refused"),
            None => "no overcommit rule will refuse a fork".to_owned(),
        },
    ));
    if let (Some(time), Some([low, high])) = (report.page_table_copy_us, report.page_table_copy_us_range) {
        let range = format!("{} to {}", micros(low), micros(high));
        lines.push((
            "page tables",
            format!("about {} to copy ({range}, measured on this host)", micros(time)),
        ));
    }
    if let (Some(rate), Some(by)) = (report.dirty_bytes_per_s, report.dirty_by) {
        lines.push(("writes to", format!("{}/s of its pages (by {by})", Bytes(rate))));
    }
    lines.push(("copy-on-write", copying(&report.cow, report.dirty_bytes_per_s.is_some())));
    for fork in &report.live_forks {
        lines.push(("live fork", format!("pid {}: {} copied so far", fork.pid, fork.cow_bytes)));
    }
    lines
}

fn copying(cow: &Cow, known: bool) -> String {
    let expected = match cow.expected_bytes {
        Some(bytes) => format!(", expected {bytes} if the child lives on"),
        None => String::new(),
    };
    let met = match cow.seconds_until {
        Some(seconds) => format!("met after {} of writing as now", span(seconds)),
        None if cow.worst_case_bytes <= cow.room_bytes => "never met".to_owned(),
        None if known => "not met by writing as now".to_owned(),
        None => "met at worst".to_owned(),
    };
    format!(
        "at worst {}{expected}. Below {} there is room for {}: {met}",
        cow.worst_case_bytes, cow.limit, cow.room_bytes
    )
}

fn micros(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.0} ms", us as f64 / 1e3),
    }
}

fn span(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}
