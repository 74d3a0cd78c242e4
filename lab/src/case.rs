//! What a case is: an incident to make, whom to ask about it, and the truth. The table of them all is
//! [`crate::cases`].
//!
//! Invariants: a name is "CAUSE/VARIANT" (or "innocent/VARIANT"), unique, and stable (reports are compared by
//! it). A truth is what the kernel's own files decide, or what the program itself did with its heap; never what a
//! tool is hoped to say.

use crate::machine::Machine;
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;
use std::fmt;

/// The answer that a finding gives: a cause's id, or nothing wrong.
pub type Named = Option<&'static str>;

/// One incident with its truth.
#[derive(Clone, Copy)]
pub struct Case {
    /// "CAUSE/VARIANT" (or "innocent/VARIANT").
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Whom to ask about.
    pub target: Target,
    /// Seconds of `--for`; 0 asks for one look.
    pub watch: u32,
    /// Whether it is also watched with `--clear-refs`.
    pub clear_refs: bool,
    /// What is so.
    pub truth: Truth,
    /// What the machine must have.
    pub needs: &'static [Need],
    /// What runs beside it and must not matter.
    pub noise: &'static [Noise],
    /// Makes the incident; it lasts as long as the stage.
    pub make: Make,
}

/// Makes an incident on a stage, and verifies it from the kernel's files.
pub type Make = fn(&mut Stage) -> Result<()>;

/// What `ebb` is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `ebb`.
    Host,
    /// `ebb explain PID`.
    Process,
    /// `ebb explain --cgroup PATH`.
    Cgroup,
    /// `ebb fork PID`.
    Fork,
}

/// The truth of a case.
#[derive(Debug, Clone, Copy)]
pub struct Truth {
    /// The cause; `None` where nothing is wrong.
    pub cause: Named,
    /// Other answers that are right too, where the evidence honestly allows both.
    pub or: &'static [Named],
    /// What the finding's `bytes` must be near.
    pub bytes: Option<Near>,
    /// What the finding's `returnable_bytes` must be near.
    pub returnable: Option<Near>,
    /// Words that the finding must contain; "{figure}" stands for the value of that figure.
    pub says: &'static [&'static str],
}

/// A range around a figure that the case measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Near {
    /// The figure's name.
    pub figure: &'static str,
    /// How far off, in percent of the figure, is still right.
    pub percent: u32,
}

/// What a case cannot do without. Where it is missing the case is skipped, visibly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Effective uid 0.
    Root,
    /// A memory controller, v1 or v2, in which groups can be made.
    MemoryCgroup,
    /// The memory controller on v2.
    CgroupV2,
    /// A pids controller, v1 or v2.
    PidsCgroup,
    /// Swap.
    Swap,
    /// A machine that may be brought into a bad state: the lab's VM (`--where vm`).
    Vm,
    /// hugetlb pages of 2 MiB.
    HugePages,
    /// Transparent huge pages at least by madvise, and MADV_COLLAPSE (6.1 and later).
    Thp,
    /// A JDK: java and javac.
    Java,
    /// Node.js.
    Node,
    /// This program in $PATH.
    Program(&'static str),
    /// zram devices that can be added (/sys/class/zram-control).
    Zram,
    /// vm.overcommit_memory = 0.
    Overcommit0,
    /// The bpf file system and the right to make maps.
    Bpf,
    /// System V shared memory and message queues.
    SysvIpc,
    /// A directory on a file system with a page cache of its own and this much room; tmpfs has none.
    Disk(Bytes),
    /// MemAvailable at least this.
    MemoryAtLeast(Bytes),
    /// The C library is glibc.
    Glibc,
    /// A kernel module that leaks, at $EBBTIDE_LAB_MODULE: no user-space program makes a kernel leak.
    Module,
}

/// What runs beside an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// A file of this size, just read.
    PageCache(Bytes),
    /// A process that computes and rewrites 64 MiB of its own.
    Busy,
    /// This many small processes.
    Small(u32),
    /// A process that uses this much memory of its own, all of it written.
    Anon(Bytes),
}

/// The truth that the cause is `id`.
pub const fn is(id: &'static str) -> Truth {
    Truth { cause: Some(id), ..INNOCENT }
}

/// The truth that nothing is wrong.
pub const INNOCENT: Truth = Truth { cause: None, or: &[], bytes: None, returnable: None, says: &[] };

impl Truth {
    /// `answers` are right too.
    #[must_use]
    pub const fn or(mut self, answers: &'static [Named]) -> Truth {
        self.or = answers;
        self
    }

    /// The finding's bytes are within `percent` of `figure`.
    #[must_use]
    pub const fn near(mut self, figure: &'static str, percent: u32) -> Truth {
        self.bytes = Some(Near { figure, percent });
        self
    }

    /// The finding's returnable bytes are within `percent` of `figure`.
    #[must_use]
    pub const fn returnable(mut self, figure: &'static str, percent: u32) -> Truth {
        self.returnable = Some(Near { figure, percent });
        self
    }

    /// The finding contains `words`.
    #[must_use]
    pub const fn says(mut self, words: &'static [&'static str]) -> Truth {
        self.says = words;
        self
    }

    /// Whether `answer` is right.
    pub fn allows(&self, answer: Option<&str>) -> bool {
        self.cause == answer || self.or.contains(&answer)
    }
}

impl Case {
    const fn new(name: &'static str, about: &'static str, target: Target, truth: Truth, make: Make) -> Case {
        Case { name, about, target, watch: 0, clear_refs: false, truth, needs: &[], noise: &[], make }
    }

    /// A case to ask `ebb` about.
    pub const fn host(name: &'static str, about: &'static str, truth: Truth, make: Make) -> Case {
        Case::new(name, about, Target::Host, truth, make)
    }

    /// A case to ask `ebb explain PID` about.
    pub const fn process(name: &'static str, about: &'static str, truth: Truth, make: Make) -> Case {
        Case::new(name, about, Target::Process, truth, make)
    }

    /// A case to ask `ebb explain --cgroup PATH` about.
    pub const fn cgroup(name: &'static str, about: &'static str, truth: Truth, make: Make) -> Case {
        Case::new(name, about, Target::Cgroup, truth, make)
    }

    /// A case to ask `ebb fork PID` about: the truth names the cause of the refusal, or none.
    pub const fn fork(name: &'static str, about: &'static str, truth: Truth, make: Make) -> Case {
        Case::new(name, about, Target::Fork, truth, make)
    }

    /// The same case watched for `seconds`.
    #[must_use]
    pub const fn watch(mut self, seconds: u32) -> Case {
        self.watch = seconds;
        self
    }

    /// The same case watched for `seconds` with `--clear-refs`.
    #[must_use]
    pub const fn watch_use(mut self, seconds: u32) -> Case {
        self.clear_refs = true;
        self.watch(seconds)
    }

    /// The same case with needs.
    #[must_use]
    pub const fn needs(mut self, needs: &'static [Need]) -> Case {
        self.needs = needs;
        self
    }

    /// The same case with noise.
    #[must_use]
    pub const fn noise(mut self, noise: &'static [Noise]) -> Case {
        self.noise = noise;
        self
    }

    /// Why this machine cannot run it; `None` where it can.
    pub fn missing(&self, machine: &Machine) -> Option<String> {
        self.needs.iter().find_map(|&need| machine.missing(need))
    }
}

impl Target {
    /// As `list` prints it.
    pub const fn word(self) -> &'static str {
        match self {
            Target::Host => "host",
            Target::Process => "process",
            Target::Cgroup => "cgroup",
            Target::Fork => "fork",
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A few words for a table.
impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Root => f.write_str("root"),
            Need::MemoryCgroup => f.write_str("memory cgroup"),
            Need::CgroupV2 => f.write_str("cgroup v2"),
            Need::PidsCgroup => f.write_str("pids cgroup"),
            Need::Swap => f.write_str("swap"),
            Need::Vm => f.write_str("VM"),
            Need::HugePages => f.write_str("hugetlb"),
            Need::Thp => f.write_str("THP"),
            Need::Java => f.write_str("JDK"),
            Need::Node => f.write_str("Node.js"),
            Need::Program(name) => f.write_str(name),
            Need::Zram => f.write_str("zram"),
            Need::Overcommit0 => f.write_str("overcommit mode 0"),
            Need::Bpf => f.write_str("BPF"),
            Need::SysvIpc => f.write_str("System V IPC"),
            Need::Disk(_) => f.write_str("disk"),
            Need::MemoryAtLeast(bytes) => write!(f, "{bytes} available"),
            Need::Glibc => f.write_str("glibc"),
            Need::Module => f.write_str("kernel module"),
        }
    }
}
