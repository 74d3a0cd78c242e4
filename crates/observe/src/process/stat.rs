//! /proc/PID/stat (and of a thread): faults, times and the places the kernel remembers.
//!
//! Facts (do_task_stat, fs/proc/array.c; proc_pid_stat(5) numbers the fields): the name is in parentheses
//! and may itself hold ") " and newlines, so the fields begin after the *last* parenthesis. Addresses and
//! the exit code need the right to debug the process; without it the kernel writes 0 or 1.

use super::status::State;
use super::{Name, Pid, Process};
use crate::{Bytes, Pages, ReadError, scan};
use serde::Serialize;
use std::time::Duration;

/// A stat file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// The name, unescaped as the kernel writes it here.
    pub name: Name,
    /// What it does.
    pub state: State,
    /// Its parent.
    pub ppid: Pid,
    /// PF_* flags (include/linux/sched.h).
    pub flags: u32,
    /// Page faults that needed no reading, of the whole process (in a thread's file: of the thread).
    pub minor_faults: u64,
    /// Page faults that had to read from disk or swap.
    pub major_faults: u64,
    /// Time in user mode, in clock ticks' grain.
    pub user_time: Duration,
    /// Time in the kernel.
    pub system_time: Duration,
    /// Threads.
    pub threads: u32,
    /// When it started, since boot: with the pid this names a process for good.
    pub start_time: Duration,
    /// Address space mapped.
    pub vsize: Bytes,
    /// Resident, roughly (per-CPU counters).
    pub rss: Pages,
    /// Where the main thread's stack began; `None` without rights or memory.
    pub start_stack: Option<u64>,
    /// Where the data segment begins (3.3).
    pub start_data: Option<u64>,
    /// Where the brk heap begins (3.3).
    pub start_brk: Option<u64>,
    /// Where the command line lies (3.5).
    pub arg_start: Option<u64>,
    /// How it ended, as waitpid tells; `None` while it runs or without rights.
    pub exit_code: Option<i32>,
}

/// PF_KTHREAD.
const KTHREAD: u32 = 0x0020_0000;

impl Stat {
    /// The figures in `text`, which must be the whole file: a name may hold newlines. `None` where the file
    /// ends before the resident set.
    pub fn parse(text: &[u8]) -> Option<Stat> {
        let open = text.iter().position(|&b| b == b'(')?;
        let close = text.iter().rposition(|&b| b == b')').filter(|&close| close > open)?;
        let mut stat = Stat { name: Name::new(&text[open + 1..close]), ..Stat::default() };
        let mut last = 0;
        for (word, field) in scan::words(text[close + 1..].trim_ascii_end()).zip(3..) {
            stat.set(field, word);
            last = field;
        }
        (last >= 24).then_some(stat)
    }

    /// Whether it is a kernel thread.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & KTHREAD != 0
    }

    /// Takes `field` by its number in proc_pid_stat(5).
    fn set(&mut self, field: u8, word: &[u8]) {
        let number = scan::number(word).unwrap_or_default();
        let small = u32::try_from(number).unwrap_or_default();
        let address = Some(number).filter(|&n| n > 1);
        match field {
            3 => self.state = State::of(word.first().copied().unwrap_or_default()),
            4 => self.ppid = small,
            9 => self.flags = small,
            10 => self.minor_faults = number,
            12 => self.major_faults = number,
            14 => self.user_time = ticks(number),
            15 => self.system_time = ticks(number),
            20 => self.threads = small,
            22 => self.start_time = ticks(number),
            23 => self.vsize = Bytes(number),
            24 => self.rss = Pages(number),
            28 => self.start_stack = address,
            45 => self.start_data = address,
            47 => self.start_brk = address,
            48 => self.arg_start = address,
            52 if self.state.ended() => self.exit_code = i32::try_from(number).ok(),
            _ => {}
        }
    }
}

fn ticks(n: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_secs(n / per_second) + Duration::from_nanos(n % per_second * 1_000_000_000 / per_second)
}

impl Process {
    /// `stat`.
    pub fn stat(&self) -> Result<Stat, ReadError> {
        self.parsed("stat", Stat::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAIL: &str = "S 5446 5446 3449 0 -1 4194560 120 0 7 0 150 25 0 0 20 0 3 0 4711 3133440 442 \
        18446744073709551615 94643209498624 94643209519105 140733193388032 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 \
        94643209535984 94643209537664 94643218345984 140728 140900 140900 141000 0\n";

    #[test]
    fn a_hostile_name_does_not_move_the_fields() {
        for name in ["cat", "a) R 1\n\x1b[31m", ") Z 7 (", "", ")"] {
            let stat = Stat::parse(format!("5448 ({name}) {TAIL}").as_bytes()).unwrap();
            assert_eq!(stat.name.as_bytes(), name.as_bytes());
            assert_eq!((stat.state, stat.ppid, stat.threads), (State::Sleeping, 5446, 3));
            assert_eq!((stat.minor_faults, stat.major_faults), (120, 7));
            assert_eq!((stat.vsize, stat.rss), (Bytes(3_133_440), Pages(442)));
            assert_eq!(stat.start_stack, Some(140_733_193_388_032));
            assert_eq!((stat.start_brk, stat.arg_start), (Some(94_643_218_345_984), Some(140_728)));
            assert_eq!((stat.exit_code, stat.is_kernel_thread()), (None, false));
        }
    }

    #[test]
    fn times_are_exact_at_the_usual_tick() {
        assert_eq!(ticks(150) * rustix::param::clock_ticks_per_second() as u32, Duration::from_secs(150));
        assert!(ticks(u64::MAX) > Duration::ZERO);
    }

    #[test]
    fn a_zombie_tells_how_it_ended() {
        let tail = TAIL.replacen('S', "Z", 1).replace("141000 0\n", "141000 9\n");
        let stat = Stat::parse(format!("1 (x) {tail}").as_bytes()).unwrap();
        assert_eq!((stat.state, stat.exit_code), (State::Zombie, Some(9)));
    }

    #[test]
    fn half_a_file_is_none() {
        assert_eq!(Stat::parse(b"1 (x) S 1 2 3"), None);
        assert_eq!(Stat::parse(b"1 )x( S"), None);
        assert_eq!(Stat::parse(b""), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Stat::parse(&text);
        }

        #[test]
        fn never_panics_on_numbers(words in proptest::collection::vec("-?[0-9]{1,30}", 0..70)) {
            let _ = Stat::parse(format!("1 (x) S {}", words.join(" ")).as_bytes());
        }
    }
}
