//! What `ebb dentries` prints for people: who, where, and one sentence with the answer.

use crate::escape::escape;
use anstyle::{AnsiColor, Style};
use ebbtide_observe::trace::{
    DentryState, DirectoryLookups, Lookups, MostlyIn, ProcessLookups, TracedProcess,
};
use std::io::{self, Write};
use std::time::Duration;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

const BOLD: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default();

/// Fewer different names in a second than this fill nothing: a million dentries (190 MB) would take 3 hours.
const FEW: f64 = 100.0;

/// Prints the report; `cpu` is what tracing took.
pub(super) fn print(out: &mut impl Write, lookups: &Lookups, cpu: Duration) -> io::Result<()> {
    let width = terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0).max(60));
    let per_second = |n: u64| grouped((n as f64 / lookups.seconds).round() as u64);
    let failed = percent(lookups.failed, lookups.lookups);
    let all = per_second(lookups.lookups);
    writeln!(out, "{all} path look-ups/s in {:.1} s, {failed} failed\n", lookups.seconds)?;
    if lookups.lookups > 0 {
        processes(out, lookups, width, per_second)?;
        directories(out, lookups, width, per_second)?;
    }
    if let (Some(before), Some(after)) = (lookups.dentries.before, lookups.dentries.after) {
        let line = |what, of: fn(DentryState) -> u64| change(what, of(before), of(after));
        writeln!(out, "{}", line("Dentries", |d| d.total))?;
        writeln!(out, "{}\n", line("Negative", |d| d.negative))?;
    }
    paragraph(out, BOLD, &answer(lookups), width)?;
    for note in notes(lookups, cpu) {
        paragraph(out, Style::new().dimmed(), &note, width)?;
    }
    Ok(())
}

fn processes(
    out: &mut impl Write,
    lookups: &Lookups,
    width: usize,
    per_second: impl Fn(u64) -> String,
) -> io::Result<()> {
    let labels: Vec<String> = lookups.processes.iter().map(label).collect();
    let first = column(&labels, "PROCESS", width / 4);
    let rest = width.saturating_sub(first + 32);
    let all: u64 = lookups.processes.iter().map(names).sum();
    writeln!(out, "{BOLD}{:first$}  LOOK-UPS/S  FAILED   NAMES/S  MOSTLY IN{BOLD:#}", "PROCESS")?;
    for (process, label) in lookups.processes.iter().zip(&labels) {
        let share = percent(process.failed, process.lookups);
        let bad = names(process) * 2 > all && names(process) as f64 > FEW * lookups.seconds;
        let style = if bad { BAD } else { Style::new() };
        let (label, place) = (padded(label, first), fit_end(&mostly_in(process), rest));
        let (rate, new) = (per_second(process.lookups), per_second(names(process)));
        writeln!(out, "{style}{label}{style:#}  {rate:>10}  {share:>6}  {new:>8}  {place}")?;
    }
    writeln!(out)
}

fn directories(
    out: &mut impl Write,
    lookups: &Lookups,
    width: usize,
    per_second: impl Fn(u64) -> String,
) -> io::Result<()> {
    let by = |d: &DirectoryLookups| d.by.as_ref().map_or(String::new(), traced);
    let labels: Vec<String> = lookups.directories.iter().map(by).collect();
    let second = column(&labels, "MOSTLY BY", width / 4);
    let rest = width.saturating_sub(second + 21);
    writeln!(out, "{BOLD} NAMES/S  MISSING  {:second$}  DIRECTORY{BOLD:#}", "MOSTLY BY")?;
    for (directory, label) in lookups.directories.iter().zip(&labels) {
        let (rate, path) = (per_second(directory_names(directory)), fit_end(&place(directory), rest));
        let share = percent(directory.missing_names, directory_names(directory));
        writeln!(out, "{rate:>8}  {share:>7}  {}  {path}", padded(label, second))?;
    }
    writeln!(out)
}

/// "python3 (812)", or of several "curl x 3,201".
fn label(process: &ProcessLookups) -> String {
    match process.pid {
        None if process.processes > 1 => {
            format!("{} x {}", escape(&process.name), grouped(process.processes))
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

fn place(directory: &DirectoryLookups) -> String {
    let below = if directory.below { " and below" } else { "" };
    format!("{}{below}", escape(&directory.path))
}

/// The directory with most of a process's names, and its share of them.
fn mostly_in(process: &ProcessLookups) -> String {
    match &process.mostly_in {
        Some(most) => format!("{:>3.0}% {}", most.share * 100.0, within(most)),
        None => "   ? (its paths were gone)".to_owned(),
    }
}

fn within(most: &MostlyIn) -> String {
    format!("{}{}", if most.below { "below " } else { "" }, escape(&most.path))
}

fn names(process: &ProcessLookups) -> u64 {
    process.missing_names + process.found_names
}

fn directory_names(directory: &DirectoryLookups) -> u64 {
    directory.missing_names + directory.found_names
}

/// The answer, in sentences.
fn answer(lookups: &Lookups) -> String {
    let Some(worst) = lookups.processes.first() else { return "Nothing looked up a path.".to_owned() };
    let all: u64 = lookups.processes.iter().map(names).sum();
    let per_second = |n: u64| grouped((n as f64 / lookups.seconds).round() as u64);
    if (all as f64) < FEW * lookups.seconds {
        let few = format!(
            "Few different names are asked for now ({}/s): what filled the cache, if anything did, is not at work \
             at this moment.",
            per_second(all)
        );
        return few + &in_vain(lookups, None);
    }
    let who = match (worst.pid, &worst.parent) {
        (Some(pid), _) => format!("{} (pid {pid}) asks", escape(&worst.name)),
        (None, Some(parent)) => {
            let (n, parent) = (grouped(worst.processes), traced(parent));
            format!("{n} short-lived {} processes, started by {parent}, ask", escape(&worst.name))
        }
        (None, None) => format!("{} {} processes ask", grouped(worst.processes), escape(&worst.name)),
    };
    let share = percent(names(worst), all);
    let place = match &worst.mostly_in {
        Some(most) if most.below => format!(", mostly {}", within(most)),
        Some(most) => format!(", mostly in {}", within(most)),
        None => String::new(),
    };
    let kind = match worst.missing_names as f64 / names(worst) as f64 {
        0.9.. => "Nearly all are missing: each leaves a negative dentry.".to_owned(),
        0.1.. => format!("{} of them are missing.", percent(worst.missing_names, names(worst))),
        _ => "Nearly all exist: each has a dentry.".to_owned(),
    };
    let rate = per_second(names(worst));
    format!(
        "{who} for {share} of the different names, {rate} a second{place}. {kind}{}",
        in_vain(lookups, worst.pid)
    )
}

/// Whoever fails most often without being the answer, as its names are always the same.
fn in_vain(lookups: &Lookups, answer: Option<u32>) -> String {
    let Some(vain) = lookups.processes.iter().max_by_key(|p| p.failed) else { return String::new() };
    let few_names = vain.missing_names.saturating_mul(20) < vain.failed;
    if vain.pid.is_none() || vain.pid == answer || !few_names || (vain.failed as f64) < FEW * lookups.seconds
    {
        return String::new();
    }
    let rate = grouped((vain.failed as f64 / lookups.seconds).round() as u64);
    format!(" {} fails {rate} times a second, but for few names, which adds no dentries.", label(vain))
}

/// What limits the answer, and what it cost.
fn notes(lookups: &Lookups, cpu: Duration) -> Vec<String> {
    let mut notes = Vec::new();
    if lookups.lost_events > 0 {
        let lost = grouped(lookups.lost_events);
        notes.push(format!(
            "{lost} records came too fast and were lost; all counts are scaled up by {:.2} for them.",
            lookups.scale
        ));
    }
    let unknown: u64 = lookups.processes.iter().map(|p| p.unknown_directory).sum();
    if unknown * 20 > lookups.lookups {
        let share = percent(unknown, lookups.lookups);
        notes.push(format!("The paths of {share} of the look-ups were gone before they could be read."));
    }
    if !lookups.exact_paths {
        notes.push("Directories and names are a sample: this kernel's records hold no paths.".to_owned());
    }
    for other in lookups.processes.iter().filter(|p| p.other_mounts) {
        notes.push(format!("{}: a container; its paths are as it sees them.", label(other)));
    }
    for unread in &lookups.unread {
        notes.push(format!("Not read: {} ({}).", escape(&unread.what), escape(&unread.why)));
    }
    let share = cpu.as_secs_f64() / lookups.seconds.max(0.001) * 100.0;
    notes.push(format!("Tracing took {:.2} s of CPU, {share:.0}% of one core.", cpu.as_secs_f64()));
    notes
}

fn change(what: &str, before: u64, after: u64) -> String {
    let sign = if after < before { '-' } else { '+' };
    format!("{what} {} -> {} ({sign}{})", grouped(before), grouped(after), grouped(after.abs_diff(before)))
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0%".to_owned();
    }
    let share = part as f64 / whole as f64 * 100.0;
    // Neither "0%" of something nor "100%" with an exception.
    match share {
        0.0 => "0%".to_owned(),
        ..1.0 => "<1%".to_owned(),
        99.0..100.0 => "99%".to_owned(),
        _ => format!("{share:.0}%"),
    }
}

/// "1,234,567".
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How wide a column of `cells` under `title` is, `limit` at most.
fn column(cells: &[String], title: &str, limit: usize) -> usize {
    cells.iter().map(|c| c.width()).max().unwrap_or(0).min(limit).max(title.len())
}

/// `text` in exactly `width` columns; the start of one that is too long.
fn padded(text: &str, width: usize) -> String {
    let mut cell = text.to_owned();
    if text.width() > width {
        cell.clear();
        for c in text.chars() {
            if cell.width() + c.width().unwrap_or(0) >= width {
                break;
            }
            cell.push(c);
        }
        cell.push('~');
    }
    let fill = width.saturating_sub(cell.width());
    cell + &" ".repeat(fill)
}

/// `text` in at most `width` columns: of a path that is too long its end tells more.
fn fit_end(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 1;
    let kept = text.char_indices().rev().take_while(|(_, c)| {
        used += c.width().unwrap_or(0);
        used <= width
    });
    let start = kept.last().map_or(text.len(), |(at, _)| at);
    format!("~{}", &text[start..])
}

/// Prints `text` with lines broken between words.
fn paragraph(out: &mut impl Write, style: Style, text: &str, width: usize) -> io::Result<()> {
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.width() + 1 + word.width() > width {
            writeln!(out, "{style}{line}{style:#}")?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "{style}{line}{style:#}")
}
