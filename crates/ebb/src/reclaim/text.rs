//! A reclaim's report for people: what came back beside what was predicted, lever by lever.

use crate::escape::escape;
use crate::render::{self, Page};
use ebbtide_observe::Bytes;
use ebbtide_reclaim::journal::Target;
use ebbtide_reclaim::{Lever, Report, Setting};
use std::fmt::Write;
use std::time::Duration;

pub(super) fn text(page: Page, target: &Target, report: &Report) -> String {
    let mut out = String::new();
    let line = |out: &mut String, indent, text: &str| {
        render::wrap(out, page, indent, indent + 2, &escape(text));
    };
    line(&mut out, 0, &format!("{}: {}", named(target), summary(report)));
    for lever in &report.levers {
        line(&mut out, 2, &said(lever, target.pid.is_some()));
        for setting in &lever.settings {
            line(&mut out, 4, &set(setting));
        }
        if let Some(undo) = &lever.undo {
            // A command is not broken: it is copied.
            let _ = writeln!(out, "    undo: {}", escape(undo));
        }
    }
    for note in &report.notes {
        line(&mut out, 2, note);
    }
    out
}

/// "M_TRIM_THRESHOLD: 62922752, now 131072".
fn set(setting: &Setting) -> String {
    let Setting { name, parts, before, set, after } = setting;
    let parts = if *parts == 1 { String::new() } else { format!(" of {parts} arenas") };
    match (before, after) {
        (Some(before), Some(after)) if before == after => format!("{name}{parts}: {after}, left as it is"),
        (Some(before), Some(after)) => format!("{name}{parts}: {before}, now {after}"),
        (Some(before), None) => format!("{name}{parts}: {before}, would be {set}"),
        (None, _) => format!("{name}{parts}: would be {set}"),
    }
}

/// A target in a few words.
pub(super) fn named(target: &Target) -> String {
    let name = target.name.as_deref().unwrap_or_default();
    match (target.pid, &target.path) {
        (Some(pid), _) => format!("{name} (pid {pid})"),
        (None, Some(path)) if name.is_empty() => format!("{} {path}", target.kind),
        (None, Some(path)) => format!("{name} of {path}"),
        (None, None) => name.to_owned(),
    }
}

fn summary(report: &Report) -> String {
    let Report { predicted, returned, longest_stop, elapsed, levers, .. } = report;
    let blocks = levers.iter().find_map(|lever| lever.blocks);
    match (returned, blocks) {
        (Some(_), Some(blocks)) => format!(
            "{} of {} free blocks were made in {}.",
            blocks.made.unwrap_or(0),
            blocks.predicted,
            time(*elapsed)
        ),
        (None, Some(blocks)) => format!("{} more free blocks could be made.", blocks.predicted),
        (Some(returned), None) => {
            let stops = match longest_stop.is_zero() {
                true => String::new(),
                false => format!("; no thread was held up longer than {}", time(*longest_stop)),
            };
            let came = format!("came back in {}{stops}", time(*elapsed));
            match levers.iter().any(|lever| lever.unforeseen) {
                _ if !levers.is_empty() && levers.iter().all(|lever| !lever.settings.is_empty()) => {
                    format!("settings made in {}{stops}.", time(*elapsed))
                }
                true => format!("{returned} {came}; {predicted} could be foreseen."),
                false => format!("{returned} of {predicted} {came}."),
            }
        }
        (None, None) if levers.iter().any(|lever| lever.unforeseen) => {
            format!("{predicted} would come back, and more that cannot be foreseen.")
        }
        (None, None) if *predicted == Bytes::ZERO => "nothing to give back.".to_owned(),
        (None, None) => format!("{predicted} would come back."),
    }
}

fn said(lever: &Lever, process: bool) -> String {
    let Lever { id, on, predicted, unforeseen, returned, cost, longest_stop, stops, short, blocks, .. } =
        lever;
    let mut text = match (returned, blocks) {
        _ if !lever.settings.is_empty() => match returned {
            None => format!("{id}: {on}; {cost}"),
            Some(_) => format!("{id}: {on}"),
        },
        (None, None) if *unforeseen => format!("{id}: {on}; {cost}"),
        (None, None) => format!("{id}: {predicted} of {on}; {cost}"),
        (None, Some(_)) => format!("{id}: {on}; {cost}"),
        (Some(_), Some(_)) => format!("{id}: {on}"),
        (Some(returned), None) if *unforeseen => format!("{id}: {returned} of {on}"),
        (Some(returned), None) => format!("{id}: {returned} of {predicted} of {on}"),
    };
    if returned.is_some() && *stops > 0 {
        let times = if *stops == 1 { "once".to_owned() } else { format!("{stops} times") };
        let _ = write!(text, ", stopped {times}, {} at most", time(*longest_stop));
    }
    if let Some(why) = short {
        let some = *stops > 0 || returned.is_some_and(|bytes| bytes > Bytes::ZERO);
        let _ = write!(text, "; {}: {why}", if some { "not to the end" } else { "not done" });
    } else if lever.fell_short() {
        text.push_str("; less than half of what was predicted: ");
        text.push_str(match process {
            true => "it works, and has taken new memory or used these pages again",
            false => "what was counted is in use, or was taken again at once",
        });
    }
    text
}

pub(super) fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.1} s"),
        seconds if seconds >= 0.01 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{:.1} ms", seconds * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_reclaim::Blocks;

    const PAGE: Page = Page { width: 80 };

    fn report(lever: Lever) -> Report {
        Report {
            predicted: lever.predicted,
            returned: lever.returned,
            longest_stop: lever.longest_stop,
            elapsed: Duration::from_millis(270),
            levers: vec![lever],
            notes: vec!["one note".to_owned()],
        }
    }

    fn host(name: &str) -> Target {
        Target { kind: "host".to_owned(), name: Some(name.to_owned()), ..Target::default() }
    }

    #[test]
    fn what_would_be_and_what_was() {
        let on = "dentries and inodes of 3 file systems".to_owned();
        let mut lever = Lever::planned("dentries", on, Bytes::from_mib(113), "they are looked up again");
        assert_eq!(
            text(PAGE, &host("dentries"), &report(lever.clone())),
            "dentries: 113 MiB would come back.\n  \
             dentries: 113 MiB of dentries and inodes of 3 file systems; they are looked up\n    again\n  one note\n"
        );
        lever.returned = Some(Bytes::from_mib(50));
        let said = text(PAGE, &host("dentries"), &report(lever));
        assert!(said.starts_with("dentries: 50.0 MiB of 113 MiB came back in 270 ms.\n"), "{said}");
        assert!(said.contains("than half of what was predicted"), "{said}");
    }

    #[test]
    fn what_nobody_can_foresee() {
        let mut lever = Lever::unforeseen("python-gc", "garbage".to_owned(), "it waits");
        let target = Target { kind: "process".to_owned(), ..Target::default() };
        assert_eq!(
            text(PAGE, &target, &report(lever.clone())),
            ": 0 B would come back, and more that cannot be foreseen.\n  python-gc: garbage; it waits\n  one note\n"
        );
        lever.returned = Some(Bytes::from_mib(50));
        assert_eq!(
            text(PAGE, &target, &report(lever)),
            ": 50.0 MiB came back in 270 ms; 0 B could be foreseen.\n  python-gc: 50.0 MiB of garbage\n  one note\n"
        );
    }

    #[test]
    fn blocks_and_undo() {
        let mut lever = Lever::planned("compaction", "free memory".to_owned(), Bytes::ZERO, "");
        lever.blocks = Some(Blocks { predicted: 40, made: Some(38) });
        lever.returned = Some(Bytes::ZERO);
        lever.undo = Some("echo 9 > /x".to_owned());
        assert_eq!(
            text(PAGE, &host("compaction"), &report(lever)),
            "compaction: 38 of 40 free blocks were made in 270 ms.\n  compaction: free memory\n    undo: echo \
             9 > /x\n  one note\n"
        );
    }

    #[test]
    fn settings_before_and_after() {
        let setting = |name: &str, parts, before, after| Setting {
            name: name.to_owned(),
            parts,
            before,
            set: 1000,
            after,
        };
        let lever = |settings| Lever {
            settings,
            ..Lever::planned("jemalloc-lasting", "settings".to_owned(), Bytes::ZERO, "dear")
        };
        let target = Target { kind: "process".to_owned(), pid: Some(7), ..Target::default() };
        let planned = lever(vec![setting("a", 1, None, None), setting("b", 1, Some(9000), None)]);
        let said = text(PAGE, &target, &report(planned));
        assert!(
            said.contains("settings; dear\n    a: would be 1000\n    b: 9000, would be 1000\n"),
            "{said}"
        );
        let mut done = lever(vec![setting("a", 4, Some(-1), Some(1000)), setting("b", 1, Some(0), Some(0))]);
        done.returned = Some(Bytes::ZERO);
        let said = text(PAGE, &target, &report(done));
        assert!(said.starts_with("(pid 7): settings made in 270 ms.\n"), "{said}");
        assert!(
            said.contains("settings\n    a of 4 arenas: -1, now 1000\n    b: 0, left as it is\n"),
            "{said}"
        );
    }

    #[test]
    fn hostile_names_are_harmless() {
        let target =
            Target { kind: "cgroup".to_owned(), path: Some("/a\x1b[2J\n".to_owned()), ..Target::default() };
        let lever = Lever::planned("memory-reclaim", "x\x1b[31m".to_owned(), Bytes::ZERO, "");
        let said = text(PAGE, &target, &report(lever));
        assert!(!said.contains('\x1b') && said.contains("nothing to give back"), "{said}");
    }
}
