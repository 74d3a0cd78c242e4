//! Settings of an allocator inside a running process, so that what was given back stays so: only on request, as they
//! last until the process ends.
//!
//! glibc, by mallopt: M_TRIM_THRESHOLD back at what it begins with, as freeing a large block has raised it, and the tops
//! of all arenas are given back from there on again; M_ARENA_MAX where that still counts. jemalloc, by mallctl: freed
//! pages are kept for a second and no longer, in the arenas there are and in those to come.
//!
//! Invariants: a setting is only made stricter; what it was is known before it is made, and what it is is read back. No
//! thread is made in the process (background_thread): one that was alone could no longer enter a user namespace, and
//! fork() would leave it behind.

use super::call::{self, CALL_MOST};
use super::code::Code;
use super::levers::{self, Function, Planner, Way, dropping_takes};
use super::{Done, Options, ReclaimError, live};
use crate::report::{Lever, Setting};
use ebbtide_heaps::glibc::{Arenas, Tunables};
use ebbtide_heaps::{Heap, Kind, Look, LookError};
use ebbtide_observe::Bytes;
use ebbtide_observe::process::Process;
use ebbtide_sys::borrow::{BorrowError, Borrowed};
use rustix::process::Pid;
use std::time::Instant;

/// DEFAULT_TRIM_THRESHOLD (malloc/malloc.c).
const THRESHOLD: Bytes = Bytes::from_kib(128);
const TRIM_THRESHOLD: &str = "M_TRIM_THRESHOLD";
const ARENA_MAX: &str = "M_ARENA_MAX";

/// For how long jemalloc keeps freed pages, in milliseconds: dirty ones (10,000 by default), and those that were
/// MADV_FREEd after that, which other tools count as resident still (0 by default from 5.1 on).
const DECAYS: [(&str, i64); 2] = [("dirty_decay_ms", 1000), ("muzzy_decay_ms", 0)];

/// What can be set in `process`; what else is worth knowing goes into `notes`.
pub(super) fn plan(
    process: &Process,
    look: &Look,
    planner: &Planner,
    notes: &mut Vec<String>,
) -> Result<Vec<(Lever, Way)>, ReclaimError> {
    let mut plan = Vec::new();
    for heap in look.known().filter(|heap| heap.corruptions.is_empty()) {
        let lever = match heap.kind {
            Kind::Glibc if planner.jvm.is_some() => {
                notes.push(
                    "glibc: nothing is set in a JVM; MALLOC_TRIM_THRESHOLD_ in its environment is".to_owned(),
                );
                continue;
            }
            Kind::Glibc => glibc(process, notes)?,
            Kind::Jemalloc => Some(jemalloc(heap, planner)),
            _ => None,
        };
        let Some(mut lever) = lever else { continue };
        if planner.is_filtered {
            lever.short = Some("it runs under a seccomp filter, so that nothing is called in it".to_owned());
        }
        plan.push((lever, Way::Lasting(heap.kind)));
    }
    if plan.is_empty() {
        notes.push("it has no allocator with a setting that would keep less (--lasting)".to_owned());
    }
    Ok(plan)
}

fn glibc(process: &Process, notes: &mut Vec<String>) -> Result<Option<Lever>, ReclaimError> {
    let Some(now) = tunables(process)? else {
        notes.push("glibc: its settings cannot be read, and are left alone".to_owned());
        return Ok(None);
    };
    let processors = processors(process.pid());
    let settings = wanted(&now, processors);
    // Their limit was reckoned from the processors when there were more than eight, and is read no more.
    if now.arenas > now.arena_test && now.arenas > processors {
        notes.push(format!(
            "glibc: {} arenas for {processors} processors; their number cannot be limited any more while it runs \
             (MALLOC_ARENA_MAX in its environment)",
            now.arenas
        ));
    }
    if settings.is_empty() {
        return Ok(None);
    }
    let cost = "no threshold adapts itself any more: a heap that breathes by more than 128 KiB gives back and faults in \
                each time";
    let on = "settings of glibc's malloc, which last until the process ends".to_owned();
    Ok(Some(Lever { settings, ..Lever::planned("glibc-lasting", on, Bytes::ZERO, cost) }))
}

/// What glibc shall go by.
fn wanted(now: &Tunables, processors: u64) -> Vec<Setting> {
    let one = |name: &str, before, set| Setting {
        name: name.to_owned(),
        parts: 1,
        // -1 is for never, as mallopt takes it.
        before: Some(u64::cast_signed(before)),
        set: u64::cast_signed(set),
        after: None,
    };
    let mut settings = Vec::new();
    if now.is_dynamic || now.trim_threshold > THRESHOLD {
        settings.push(one(TRIM_THRESHOLD, now.trim_threshold.0, THRESHOLD.0.min(now.trim_threshold.0)));
    }
    if now.arena_max == 0 && now.arenas > processors && now.arenas <= now.arena_test {
        settings.push(one(ARENA_MAX, 0, now.arenas));
    }
    settings
}

/// On how many processors it may run.
fn processors(pid: u32) -> u64 {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    rustix::thread::sched_getaffinity(pid).map_or(u64::MAX, |set| u64::from(set.count()))
}

/// What the one glibc of `process` goes by.
fn tunables(process: &Process) -> Result<Option<Tunables>, ReclaimError> {
    let source = live(process)?;
    let now = |arenas: Vec<Arenas>| match arenas.as_slice() {
        [one] => one.tunables(&source),
        _ => Ok(None),
    };
    Ok(Arenas::find(&source).and_then(now).map_err(LookError::from)?)
}

fn jemalloc(heap: &Heap, planner: &Planner) -> Lever {
    let setting =
        |name: &str, parts, set| Setting { name: name.to_owned(), parts, before: None, set, after: None };
    let settings = DECAYS.iter().flat_map(|&(name, set)| {
        let of_arenas = setting(&format!("arena.<i>.{name}"), heap.arenas.len() as u64, set);
        [setting(&format!("arenas.{name}"), 1, set), of_arenas]
    });
    let on = "settings of jemalloc, where they are higher, which last until the process ends".to_owned();
    let cost = "what is freed and wanted again after a second is faulted in again";
    let mut lever =
        Lever { settings: settings.collect(), ..Lever::planned("jemalloc-lasting", on, Bytes::ZERO, cost) };
    // An arena whose decay is set begins it anew, and drops what is dirty at once (arena_decay_reinit, 5.0 to 5.3).
    let takes = dropping_takes(heap.figures.returnable_by_trim.unwrap_or_default());
    if takes > planner.max_stop {
        let takes = takes.as_millis() + 1;
        lever.short =
            Some(format!("it would drop free pages, and hold up a thread for about {takes} ms (--max-stop)"));
    }
    lever
}

/// Makes `settings`, and enters what they were and are.
pub(super) fn set(
    process: &Process,
    code: &Code,
    options: &Options,
    kind: Kind,
    settings: &mut Vec<Setting>,
) -> Result<Done, ReclaimError> {
    let mut done = match kind {
        Kind::Jemalloc => set_decays(process, code, options, settings),
        _ => set_glibc(process, code, options, settings)?,
    };
    let refused = settings.iter().find(|setting| setting.after.is_some_and(|after| after != setting.set));
    if let (Some(Setting { name, set, after: Some(after), .. }), None) = (refused, &done.short) {
        done.short = Some(format!("{name} is {after} afterwards, not {set}"));
    }
    Ok(done)
}

/// `mallopt(parameter, value)` for each; its books tell whether it did.
fn set_glibc(
    process: &Process,
    code: &Code,
    options: &Options,
    settings: &mut [Setting],
) -> Result<Done, ReclaimError> {
    let mut all = Done::default();
    for setting in settings.iter() {
        // M_TRIM_THRESHOLD and M_ARENA_MAX (malloc.h).
        let parameter: i32 = if setting.name == TRIM_THRESHOLD { -1 } else { -8 };
        let mut function = Function::plain(&["mallopt"], "gnu_get_libc_version", u64::from(parameter as u32));
        function.args[1] = setting.set as u64;
        all = all.and(call::call(process, code, options, &function));
        if all.short.is_some() {
            break;
        }
    }
    let Some(now) = tunables(process)? else {
        all.short.get_or_insert("its settings cannot be read any more".to_owned());
        return Ok(all);
    };
    for setting in settings {
        let is = if setting.name == TRIM_THRESHOLD { now.trim_threshold.0 } else { now.arena_max };
        setting.after = Some(is.cast_signed());
    }
    Ok(all)
}

/// A setting as mallctl has it: what it was, and is.
struct Decay {
    name: String,
    before: i64,
    after: i64,
}

/// Of the arenas those from this one on, and what was done before: the state between two stops.
#[derive(Default)]
struct Progress {
    next: u64,
    decays: Vec<Decay>,
    is_over: bool,
}

/// `mallctl` for the default and for each arena, as many in one stop as it allows.
fn set_decays(process: &Process, code: &Code, options: &Options, settings: &mut Vec<Setting>) -> Done {
    let mut done = Done::default();
    let Some(pid) = i32::try_from(process.pid()).ok().and_then(Pid::from_raw) else { return done };
    let (mut next, mut decays) = (0, Vec::new());
    loop {
        let act = |thread: &mut Borrowed<'_>, address| {
            let mut control = Control { pid, thread, address };
            control.advance(next, options)
        };
        let step = call::by_thread(process, code, options, &levers::JEMALLOC, &mut done, &act);
        let Some(step) = step else { break };
        decays.extend(step.decays);
        next = step.next;
        if step.is_over {
            break;
        }
    }
    if done.short.is_none() && decays.is_empty() {
        done.short = Some("its mallctl knows none of them".to_owned());
    }
    enter(decays, settings);
    done
}

/// Enters what was done, of arenas those together that were alike.
fn enter(decays: Vec<Decay>, settings: &mut Vec<Setting>) {
    if decays.is_empty() {
        return;
    }
    let planned = std::mem::take(settings);
    for plan in planned {
        let mut of_it: Vec<(i64, i64)> = Vec::new();
        of_it.extend(decays.iter().filter(|decay| decay.name == plan.name).map(|d| (d.before, d.after)));
        of_it.sort_unstable();
        for alike in of_it.chunk_by(|a, b| a == b) {
            let &(before, after) = &alike[0];
            let parts = alike.len() as u64;
            // What was stricter already was left as it is.
            let set = if (0..=plan.set).contains(&before) { before } else { plan.set };
            settings.push(Setting { parts, before: Some(before), set, after: Some(after), ..plan.clone() });
        }
    }
}

/// mallctl in a borrowed thread.
struct Control<'b, 't> {
    pid: Pid,
    thread: &'b mut Borrowed<'t>,
    address: u64,
}

/// Where in the room beside a borrowed thread's frame: the name, what was, its size, what shall be.
const OLD: usize = 96;
/// Nothing that could be set.
const UNWRITTEN: i64 = i64::MIN;

impl Control<'_, '_> {
    /// Sets what is to be set, from arena `next` on (0: the default first), for half of the time of a stop.
    fn advance(&mut self, next: u64, options: &Options) -> Result<Progress, BorrowError> {
        let began = Instant::now();
        let mut progress = Progress { next, ..Progress::default() };
        let arenas = self.read("arenas.narenas", 4)?.unwrap_or(0) as u64 & 0xffff_ffff;
        if next == 0 {
            for (name, most) in DECAYS {
                let name = format!("arenas.{name}");
                progress.decays.extend(self.at_most(&name, most, name.clone())?);
            }
        }
        while progress.next < arenas {
            for (name, most) in DECAYS {
                let of_arena = format!("arena.{}.{name}", progress.next);
                progress.decays.extend(self.at_most(&of_arena, most, format!("arena.<i>.{name}"))?);
            }
            progress.next += 1;
            if began.elapsed() > options.max_stop / 2 {
                break;
            }
        }
        progress.is_over = progress.next >= arenas;
        Ok(progress)
    }

    /// Has `name` be no more than `most`, where -1 is for ever; nothing where there is no such setting, as of an arena
    /// that was not made yet.
    fn at_most(&mut self, name: &str, most: i64, called: String) -> Result<Option<Decay>, BorrowError> {
        let Some(before) = self.read(name, 8)? else { return Ok(None) };
        let mut after = before;
        if before < 0 || before > most {
            self.call(name, 0, Some(most))?;
            after = self.read(name, 8)?.unwrap_or(before);
        }
        Ok(Some(Decay { name: called, before, after }))
    }

    /// `mallctl(name, &old, &size, NULL, 0)`.
    fn read(&mut self, name: &str, size: u64) -> Result<Option<i64>, BorrowError> {
        let value = self.call(name, size, None)?;
        Ok((value != UNWRITTEN).then_some(value))
    }

    /// `mallctl(name, &old, &size, &new, 8)` with what is given; what it says it was.
    fn call(&mut self, name: &str, size: u64, new: Option<i64>) -> Result<i64, BorrowError> {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(OLD, 0);
        for word in [UNWRITTEN as u64, size, new.unwrap_or(0) as u64] {
            bytes.extend(word.to_le_bytes());
        }
        let at = self.thread.beside(&bytes)?;
        let [old, length, set] = [0, 8, 16].map(|offset| at + OLD as u64 + offset);
        let reading = if size > 0 { [old, length] } else { [0, 0] };
        let setting = new.map_or([0, 0], |_| [set, 8]);
        let args = [at, reading[0], reading[1], setting[0], setting[1], 0];
        self.thread.call(self.address, args, CALL_MOST)?;
        let mut word = [0; 8];
        match ebbtide_sys::remote::read(self.pid, old, &mut word) {
            Ok(8) => Ok(i64::from_le_bytes(word)),
            _ => Ok(UNWRITTEN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_of_glibc() {
        let fresh = Tunables {
            trim_threshold: THRESHOLD,
            mmap_threshold: THRESHOLD,
            is_dynamic: true,
            arena_test: 8,
            arena_max: 0,
            arenas: 1,
        };
        let of = |now: Tunables| -> Vec<(String, i64)> {
            wanted(&now, 4).into_iter().map(|setting| (setting.name, setting.set)).collect()
        };
        let trim = |threshold| (TRIM_THRESHOLD.to_owned(), threshold);
        assert_eq!(of(fresh), [trim(131_072)], "it may still rise");
        assert_eq!(of(Tunables { trim_threshold: Bytes::from_mib(60), ..fresh }), [trim(131_072)]);
        let never = Tunables { trim_threshold: Bytes(u64::MAX), ..fresh };
        assert_eq!(wanted(&never, u64::MAX)[0].before, Some(-1));
        let still = Tunables { is_dynamic: false, ..fresh };
        assert_eq!(of(still), []);
        assert_eq!(of(Tunables { trim_threshold: Bytes::from_kib(64), ..still }), [], "stricter already");
        let limited = |arenas| of(Tunables { arenas, ..still });
        assert_eq!(limited(4), [], "one for each processor");
        assert_eq!(limited(5), [(ARENA_MAX.to_owned(), 5)]);
        assert_eq!(limited(9), [], "the limit is reckoned");
        assert_eq!(of(Tunables { arenas: 5, arena_max: 6, ..still }), [], "somebody's choice");
    }

    #[test]
    fn arenas_that_are_alike_are_one_line() {
        let decay = |name: &str, before, after| Decay { name: name.to_owned(), before, after };
        let planned =
            |name: &str| Setting { name: name.to_owned(), parts: 4, before: None, set: 1000, after: None };
        let mut settings = vec![planned("a"), planned("b")];
        enter(vec![decay("b", 10_000, 1000), decay("b", 0, 0), decay("b", 10_000, 1000)], &mut settings);
        let of_it = |parts, before, set, after| Setting {
            parts,
            before: Some(before),
            set,
            after: Some(after),
            ..planned("b")
        };
        assert_eq!(settings, [of_it(1, 0, 0, 0), of_it(2, 10_000, 1000, 1000)]);
    }
}
