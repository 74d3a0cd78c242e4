//! The variable that fits what was found in a process, and what it would have saved.
//!
//! What a variable would have saved can seldom be known from a heap as it is: where only a bound is known, it is said to
//! be one. All take a restart of the process; what helps without one is `ebb reclaim`.

use super::check::{Program, environ};
use ebbtide_explain::{Cause, Finding};
use ebbtide_heaps::{Heap, Kind};
use ebbtide_observe::Bytes;
use serde::Serialize;

/// A variable to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// "MALLOC_ARENA_MAX=2".
    pub line: String,
    /// The finding that it follows from, by its cause.
    pub cause: &'static str,
    /// What was found.
    pub why: String,
    /// At most so much less would be resident now; `None` where not even a bound is known.
    #[serde(rename = "saves_at_most_bytes")]
    pub saves_at_most: Option<Bytes>,
    /// How that was reckoned.
    pub reckoned: &'static str,
    /// What can go wrong.
    pub danger: &'static str,
    /// The file of a systemd drop-in, where the process is a service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What stands in it.
    pub drop_in: String,
}

/// What fits `findings` about `program`, in which `heaps` were seen; nothing that its environment says already.
pub fn propose(program: &Program, heaps: &[Heap], findings: &[Finding]) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    for heap in heaps {
        let kept = [Cause::ArenaMultiplication, Cause::AllocatorRetention];
        // Of several heaps the one that the finding is about.
        let about = |finding: &&Finding| {
            kept.contains(&finding.cause) && heap.figures.returnable * 2 >= finding.bytes
        };
        let finding = findings.iter().find(about);
        proposals.extend(finding.and_then(|finding| for_heap(program, heap, finding)));
        proposals.extend(go_limit(program, heap));
    }
    let headroom = findings.iter().find(|finding| finding.cause == Cause::GcHeadroom);
    proposals.extend(headroom.and_then(|finding| jvm(program, finding)));
    proposals
}

/// `name=value` with what the environment has for `name` already in front; `None` where that says it, or decides it.
fn beside(program: &Program, name: &str, value: &str) -> Option<String> {
    let set = environ::variables(&program.environ);
    let Some((_, old)) = set.into_iter().find(|(known, old)| known == name && !old.is_empty()) else {
        return Some(format!("{name}={value}"));
    };
    let (between, key) = match name {
        "JAVA_TOOL_OPTIONS" => (" ", "G1PeriodicGCInterval"),
        _ if name.ends_with("MALLOC_CONF") => (",", "background_thread"),
        // A number that was chosen already.
        "GOMEMLIMIT" => return None,
        _ => return (old != value).then(|| format!("{name}={value}")),
    };
    (!old.contains(key)).then(|| format!("{name}={old}{between}{value}"))
}

fn proposal(
    program: &Program,
    (name, value): (&str, &str),
    finding: (Cause, &str),
    saves: (Option<Bytes>, &'static str),
    danger: &'static str,
) -> Option<Proposal> {
    let line = beside(program, name, value)?;
    let quoted = if line.contains(' ') { format!("\"{line}\"") } else { line.clone() };
    Some(Proposal {
        drop_in: format!("[Service]\nEnvironment={quoted}\n"),
        file: program.unit.as_ref().map(|unit| format!("/etc/systemd/system/{unit}.d/60-ebbtide.conf")),
        line,
        cause: finding.0.id(),
        why: finding.1.to_owned(),
        saves_at_most: saves.0,
        reckoned: saves.1,
        danger,
    })
}

fn for_heap(program: &Program, heap: &Heap, finding: &Finding) -> Option<Proposal> {
    let found = (finding.cause, finding.summary.as_str());
    match heap.kind {
        Kind::Glibc if finding.cause == Cause::ArenaMultiplication => {
            let mut kept: Vec<Bytes> = heap.arenas.iter().map(|arena| arena.figures.returnable).collect();
            kept.sort_unstable_by_key(|bytes| std::cmp::Reverse(*bytes));
            let beyond_two = kept.iter().skip(2).copied().sum();
            proposal(
                program,
                ("MALLOC_ARENA_MAX", "2"),
                found,
                (
                    Some(beyond_two),
                    "the free pages of all arenas but the two that keep most: what lives in those would be in these two",
                ),
                "threads share the locks of two arenas: slower where many allocate at once",
            )
        }
        Kind::Glibc => {
            let top = |arena: &ebbtide_heaps::Arena| arena.figures.returnable.min(arena.figures.largest_free);
            let tops = heap.arenas.iter().map(top).sum();
            proposal(
                program,
                ("MALLOC_TRIM_THRESHOLD_", "131072"),
                found,
                (
                    Some(tops),
                    "each arena's largest free block, as if it were on top: only the top is given back, the rest by 'ebb reclaim'",
                ),
                "no threshold adapts itself any more: a heap that breathes by more than 128 KiB gives back and faults in each time",
            )
        }
        Kind::Jemalloc => {
            let name = program.conf_names.iter().next().map_or("MALLOC_CONF", String::as_str);
            proposal(
                program,
                (name, "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0"),
                found,
                (heap.figures.returnable_by_trim, "the pages that jemalloc holds as dirty or muzzy now"),
                "a thread of its own; what is freed and wanted again after a second is faulted in again",
            )
        }
        Kind::Tcmalloc => proposal(
            program,
            ("TCMALLOC_RELEASE_RATE", "10"),
            found,
            (heap.figures.returnable_by_trim, "the whole free pages in its page heap now"),
            "releases ten times as often, at calls of free: what is wanted again is faulted in again",
        ),
        _ => None,
    }
}

/// From this share of its limit on a Go program has reason to know of it.
const NEAR: f64 = 0.5;

fn go_limit(program: &Program, heap: &Heap) -> Option<Proposal> {
    let limit = program.limit.filter(|_| heap.name.as_deref() == Some("Go heap"))?;
    let resident = heap.figures.resident;
    if resident.share_of(limit) < NEAR {
        return None;
    }
    let why = format!(
        "its Go heap has {resident} of the {limit} that it may have, and the collector knows of no limit"
    );
    let wanted = format!("{}MiB", limit.scaled(0.9).0 >> 20);
    proposal(
        program,
        ("GOMEMLIMIT", &wanted),
        (Cause::GcHeadroom, &why),
        (None, "not to be known from outside: what lives in a Go heap its collector alone can tell"),
        "near the limit the collector runs more and more often; it takes half of the CPU at most",
    )
}

fn jvm(program: &Program, finding: &Finding) -> Option<Proposal> {
    program.mapped.iter().find(|path| path.ends_with("/libjvm.so"))?;
    proposal(
        program,
        ("JAVA_TOOL_OPTIONS", "-XX:+UseG1GC -XX:G1PeriodicGCInterval=60000"),
        (finding.cause, &finding.summary),
        (
            Some(finding.bytes),
            "what is committed beyond what lives; a collection gives back down to MinHeapFreeRatio",
        ),
        "JDK 12 and later; collects once a minute while idle. Options on the command line win over this variable",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_heaps::{Arena, Figures};

    fn arena(name: &str, returnable: u64, largest: u64) -> Arena {
        let figures = Figures {
            returnable: Bytes::from_mib(returnable),
            largest_free: Bytes::from_mib(largest),
            returnable_by_trim: Some(Bytes::from_mib(returnable)),
            ..Figures::default()
        };
        Arena { address: 0, name: name.into(), figures, collector: None }
    }

    fn heap(kind: Kind, arenas: Vec<Arena>) -> Heap {
        let returnable_by_trim =
            Some(arenas.iter().filter_map(|arena| arena.figures.returnable_by_trim).sum());
        let figures = Figures { returnable: Bytes::from_mib(160), returnable_by_trim, ..Figures::default() };
        Heap { figures, arenas, ..Heap::new(kind) }
    }

    fn found(cause: Cause) -> Vec<Finding> {
        vec![Finding::new(cause, Bytes::from_mib(300), 0.9, "found")]
    }

    fn lines(program: &Program, heap: Heap, findings: &[Finding]) -> Vec<(String, Option<u64>)> {
        let proposals = propose(program, &[heap], findings);
        proposals.into_iter().map(|p| (p.line, p.saves_at_most.map(|bytes| bytes.0 >> 20))).collect()
    }

    #[test]
    fn what_fits_an_allocator() {
        let arenas = || vec![arena("main", 10, 4), arena("thread 1", 100, 90), arena("thread 2", 50, 50)];
        let program = Program::default();
        let multiplied = lines(&program, heap(Kind::Glibc, arenas()), &found(Cause::ArenaMultiplication));
        assert_eq!(multiplied, [("MALLOC_ARENA_MAX=2".into(), Some(10))]);
        let retained = |kind| lines(&program, heap(kind, arenas()), &found(Cause::AllocatorRetention));
        assert_eq!(retained(Kind::Glibc), [("MALLOC_TRIM_THRESHOLD_=131072".into(), Some(144))]);
        assert_eq!(retained(Kind::Tcmalloc), [("TCMALLOC_RELEASE_RATE=10".into(), Some(160))]);
        assert_eq!(retained(Kind::LuaJit), [], "no variable helps");
        assert_eq!(lines(&program, heap(Kind::Glibc, arenas()), &[]), [], "nothing was found");
        assert_eq!(
            lines(&program, Heap::new(Kind::Glibc), &found(Cause::AllocatorRetention)),
            [],
            "another heap"
        );
        let set = Program { environ: b"MALLOC_ARENA_MAX=2\0".to_vec(), ..Program::default() };
        assert_eq!(lines(&set, heap(Kind::Glibc, arenas()), &found(Cause::ArenaMultiplication)), []);
    }

    #[test]
    fn by_the_name_that_this_jemalloc_reads() {
        let program = Program { conf_names: ["_RJEM_MALLOC_CONF".to_owned()].into(), ..Program::default() };
        let proposals =
            lines(&program, heap(Kind::Jemalloc, vec![arena("0", 64, 1)]), &found(Cause::AllocatorRetention));
        assert!(proposals[0].0.starts_with("_RJEM_MALLOC_CONF=background_thread:true"), "{proposals:?}");
        assert_eq!(proposals[0].1, Some(64));
    }

    #[test]
    fn a_go_heap_that_nears_its_limit() {
        let mut go = Heap { name: Some("Go heap".into()), ..Heap::new(Kind::Unknown) };
        go.figures.resident = Bytes::from_mib(1200);
        let program = Program { limit: Some(Bytes::from_gib(2)), ..Program::default() };
        assert_eq!(lines(&program, go.clone(), &[]), [("GOMEMLIMIT=1843MiB".into(), None)]);
        let set = Program { environ: b"GOMEMLIMIT=1GiB\0".to_vec(), ..program };
        assert_eq!(lines(&set, go, &[]), []);
    }

    #[test]
    fn drop_ins() {
        let program = Program {
            unit: Some("x.service".into()),
            mapped: ["/usr/lib/server/libjvm.so".to_owned()].into(),
            ..Program::default()
        };
        let set = Program { environ: b"JAVA_TOOL_OPTIONS=-Dx=y\0".to_vec(), ..Program::default() };
        let set = Program { mapped: program.mapped.clone(), ..set };
        let both = &propose(&set, &[], &found(Cause::GcHeadroom))[0].line;
        assert_eq!(both, "JAVA_TOOL_OPTIONS=-Dx=y -XX:+UseG1GC -XX:G1PeriodicGCInterval=60000");
        let proposal = &propose(&program, &[], &found(Cause::GcHeadroom))[0];
        assert_eq!(proposal.file.as_deref(), Some("/etc/systemd/system/x.service.d/60-ebbtide.conf"));
        assert!(proposal.drop_in.starts_with("[Service]\nEnvironment=\"JAVA_TOOL_OPTIONS="), "{proposal:?}");
    }
}
