//! What `ebb dentries` prints for people: who, where, and in one sentence the answer.

use crate::escape::escape;
use crate::render::{self, Align, BAD, Page, Table, cut, heading, unread, wrap};
use ebbtide_explain::count;
use ebbtide_observe::host::DentryState;
use ebbtide_observe::trace::{DirectoryLookups, Lookups, MostlyIn, ProcessLookups, TracedProcess};
use std::time::Duration;

/// Fewer different names in a second than this fill nothing: a million dentries (190 MB) would take 3 hours.
const FEW: f64 = 100.0;

/// The report; `cpu` is what tracing took.
pub(super) fn report(page: Page, lookups: &Lookups, cpu: Duration) -> String {
    let mut out = String::new();
    wrap(&mut out, page, 0, 0, &answer(lookups));
    if lookups.lookups > 0 {
        heading(&mut out, "Processes");
        processes(lookups, page).render(&mut out, page);
        heading(&mut out, "Directories");
        directories(lookups, page).render(&mut out, page);
    }
    heading(&mut out, "Meanwhile on this host");
    for line in meanwhile(lookups, cpu) {
        wrap(&mut out, page, 2, 4, &line);
    }
    unread(&mut out, page, &lookups.unread);
    out
}

fn processes(lookups: &Lookups, page: Page) -> Table {
    use Align::{Left, Right};
    let heads =
        [("LOOK-UPS/S", Right), ("FAILED", Right), ("NAMES/S", Right), ("PROCESS", Left), ("MOSTLY", Left)];
    let mut table = Table::new(&heads);
    for process in &lookups.processes {
        table.row(vec![
            rate(process.lookups, lookups),
            percent(process.failed, process.lookups),
            rate(names(process), lookups),
            cut(&label(process), page.width / 4),
            mostly_in(process),
        ]);
    }
    table
}

fn directories(lookups: &Lookups, page: Page) -> Table {
    use Align::{Left, Right};
    let heads = [("NAMES/S", Right), ("MISSING", Right), ("MOSTLY BY", Left), ("DIRECTORY", Left)];
    let mut table = Table::new(&heads);
    for directory in &lookups.directories {
        let by = directory.by.as_ref().map_or(String::new(), traced);
        let below = if directory.below { " and below" } else { "" };
        table.row(vec![
            rate(names_in(directory), lookups),
            percent(directory.missing_names, names_in(directory)),
            cut(&by, page.width / 4),
            format!("{}{below}", escape(&directory.path)),
        ]);
    }
    table
}

/// "python3 (812)", or of several "curl x 3,201".
fn label(process: &ProcessLookups) -> String {
    match process.pid {
        None if process.processes > 1 => {
            format!("{} x {}", escape(&process.name), count(process.processes))
        }
        pid => traced(&TracedProcess { pid, name: process.name.clone() }),
    }
}

fn traced(process: &TracedProcess) -> String {
    match process.pid {
        Some(pid) => format!("{} ({pid})", escape(&process.name)),
        None => escape(&process.name).into_owned(),
    }
}

/// The directory with most of a process's names, and its share of them.
fn mostly_in(process: &ProcessLookups) -> String {
    match &process.mostly_in {
        Some(most) => format!("{:>3.0}% {}", most.share * 100.0, within(most)),
        None => "its paths were gone".to_owned(),
    }
}

fn within(most: &MostlyIn) -> String {
    format!("{} {}", if most.below { "below" } else { "in" }, escape(&most.path))
}

fn names(process: &ProcessLookups) -> u64 {
    process.missing_names.saturating_add(process.found_names)
}

fn names_in(directory: &DirectoryLookups) -> u64 {
    directory.missing_names.saturating_add(directory.found_names)
}

/// The answer, in sentences.
fn answer(lookups: &Lookups) -> String {
    let Some(worst) = lookups.processes.first() else {
        return format!("Nothing looked up a path in {:.1} s.", lookups.seconds);
    };
    let all: u64 = lookups.processes.iter().map(names).sum();
    if (all as f64) < FEW * lookups.seconds {
        let few = format!(
            "Few different names are asked for ({}/s): what filled the directory cache, if anything did, is not \
             at work at this moment.",
            rate(all, lookups)
        );
        return few + &in_vain(lookups, None);
    }
    let who = match (worst.pid, &worst.parent) {
        (Some(pid), _) => format!("{} (pid {pid}) asks", escape(&worst.name)),
        (None, Some(parent)) => {
            let (n, parent) = (count(worst.processes), traced(parent));
            format!("{n} short-lived {} processes, started by {parent}, ask", escape(&worst.name))
        }
        (None, None) => format!("{} {} processes ask", count(worst.processes), escape(&worst.name)),
    };
    let share = percent(names(worst), all);
    let place = worst.mostly_in.as_ref().map_or(String::new(), |most| format!(", mostly {}", within(most)));
    let kind = match worst.missing_names as f64 / names(worst) as f64 {
        0.9.. => "Nearly all are missing: each leaves a negative dentry.".to_owned(),
        0.1.. => format!("{} of them are missing.", percent(worst.missing_names, names(worst))),
        _ => "Nearly all exist: each has a dentry.".to_owned(),
    };
    let rate = rate(names(worst), lookups);
    let vain = in_vain(lookups, worst.pid);
    format!("{who} for {share} of the different names, {rate} a second{place}. {kind}{vain}")
}

/// Whoever fails most often without being the answer, as its names are always the same.
fn in_vain(lookups: &Lookups, answer: Option<u32>) -> String {
    let Some(vain) = lookups.processes.iter().max_by_key(|p| p.failed) else { return String::new() };
    let few_names = vain.missing_names.saturating_mul(20) < vain.failed;
    if vain.pid.is_none() || vain.pid == answer || !few_names || (vain.failed as f64) < FEW * lookups.seconds
    {
        return String::new();
    }
    format!(
        " {} fails {} times a second, but for few names, which adds no dentries.",
        label(vain),
        rate(vain.failed, lookups)
    )
}

/// What happened to the cache, what limits the answer, and what it cost.
fn meanwhile(lookups: &Lookups, cpu: Duration) -> Vec<String> {
    let mut lines = vec![format!(
        "{} path look-ups in {:.1} s ({}/s), {} failed",
        count(lookups.lookups),
        lookups.seconds,
        rate(lookups.lookups, lookups),
        percent(lookups.failed, lookups.lookups)
    )];
    if let (Some(before), Some(after)) = (lookups.dentries.before, lookups.dentries.after) {
        let change = |of: fn(DentryState) -> u64| {
            let (before, after) = (of(before), of(after));
            let sign = if after < before { '-' } else { '+' };
            format!("{} -> {} ({sign}{})", count(before), count(after), count(after.abs_diff(before)))
        };
        lines.push(format!("dentries {}, negative ones {}", change(|d| d.dentries), change(|d| d.negative)));
    }
    if lookups.lost_events > 0 {
        let lost = count(lookups.lost_events);
        lines.push(format!(
            "{BAD}{lost} records came too fast and were lost{BAD:#}; all counts are scaled up by {:.2} for them",
            lookups.scale
        ));
    }
    let unknown: u64 = lookups.processes.iter().map(|p| p.unknown_directory).sum();
    if unknown.saturating_mul(20) > lookups.lookups {
        let share = percent(unknown, lookups.lookups);
        lines.push(format!("the paths of {share} of the look-ups were gone before they could be read"));
    }
    if !lookups.exact_paths && lookups.lookups > 0 {
        lines.push("directories and names are a sample: this kernel's records hold no paths".to_owned());
    }
    for other in lookups.processes.iter().filter(|p| p.other_mounts) {
        lines.push(format!("{}: in a container; its paths are as it sees them", label(other)));
    }
    let share = cpu.as_secs_f64() / lookups.seconds.max(0.001) * 100.0;
    lines.push(format!("tracing took {:.2} s of CPU, {share:.0}% of one core", cpu.as_secs_f64()));
    lines
}

fn rate(n: u64, lookups: &Lookups) -> String {
    count((n as f64 / lookups.seconds.max(0.001)).round() as u64)
}

fn percent(part: u64, whole: u64) -> String {
    render::percent(part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::trace::BeforeAfter;

    fn process(
        pid: Option<u32>,
        name: &str,
        lookups: u64,
        failed: u64,
        missing_names: u64,
    ) -> ProcessLookups {
        let most = MostlyIn { path: "/var/cache/\x1b[2Jx".to_owned(), below: false, share: 0.99 };
        ProcessLookups {
            pid,
            name: name.to_owned(),
            processes: if pid.is_some() { 1 } else { 3201 },
            parent: Some(TracedProcess { pid: Some(7), name: "sh".to_owned() }),
            root: None,
            other_mounts: false,
            lookups,
            failed,
            unknown_directory: 0,
            missing_names,
            found_names: 0,
            mostly_in: Some(most),
            directories: Vec::new(),
        }
    }

    fn sample(processes: Vec<ProcessLookups>) -> Lookups {
        Lookups {
            seconds: 2.0,
            lookups: processes.iter().map(|p| p.lookups).sum(),
            failed: processes.iter().map(|p| p.failed).sum(),
            lost_events: 0,
            scale: 1.0,
            exact_paths: true,
            dentries: BeforeAfter { before: None, after: None },
            processes,
            directories: Vec::new(),
            unread: Vec::new(),
        }
    }

    #[test]
    fn the_answer_names_who_makes_names_not_who_fails_most() {
        let poller = process(Some(9), "poller", 900_000, 900_000, 3);
        let text = answer(&sample(vec![process(None, "curl", 20_000, 20_000, 20_000), poller]));
        assert_eq!(
            text,
            "3,201 short-lived curl processes, started by sh (7), ask for 99% of the different names, 10,000 a \
             second, mostly in /var/cache/\\x1b[2Jx. Nearly all are missing: each leaves a negative dentry. poller \
             (9) fails 450,000 times a second, but for few names, which adds no dentries."
        );
    }

    #[test]
    fn an_idle_host_is_no_culprit() {
        assert!(answer(&sample(Vec::new())).starts_with("Nothing looked up"));
        let text = answer(&sample(vec![process(Some(9), "cron", 30, 20, 10)]));
        assert!(text.starts_with("Few different names are asked for (5/s)"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_page_and_nothing_hostile_reaches_it() {
        let named = process(Some(1), "a\u{1b}]0;x\u{7}", 1_000_000, 1_000_000, 1_000_000);
        let page = Page { width: 60 };
        let text = report(page, &sample(vec![named]), Duration::from_millis(400));
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(!plain.contains('\u{1b}') && !plain.contains('\u{7}'));
        for line in plain.lines() {
            assert!(crate::render::columns(line) <= page.width, "{line}");
        }
    }
}
