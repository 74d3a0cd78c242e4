//! The GNU C library's variables and tunables, by version.
//!
//! Read in glibc's tags: elf/dl-tunables.list (2.25 to 2.42: what there is, least and most), elf/dl-tunables.c
//! (parse_tunables, tunable_initialize), malloc/malloc.c (do_set_*). Up to 2.38 numbers are read as by strtoul and
//! what follows them is ignored; from 2.39 on such a value is refused, and a malformed GLIBC_TUNABLES as a whole.

use super::program::{Program, is_libc};
use crate::tune::distance::nearest;
use crate::tune::judge::{Remark, Verdict};
use ebbtide_heaps::Kind;
use ebbtide_observe::Bytes;

/// A tunable of malloc.
struct Tunable {
    name: &'static str,
    /// Its variable, older than tunables.
    alias: Option<&'static str>,
    /// The minor version of glibc 2 that it came with.
    since: u32,
    least: u64,
    most: u64,
}

const fn tunable(
    name: &'static str,
    alias: Option<&'static str>,
    since: u32,
    least: u64,
    most: u64,
) -> Tunable {
    Tunable { name, alias, since, least, most }
}

const ANY: u64 = u64::MAX;

const MALLOC: [Tunable; 13] = [
    tunable("glibc.malloc.check", Some("MALLOC_CHECK_"), 25, 0, 3),
    tunable("glibc.malloc.top_pad", Some("MALLOC_TOP_PAD_"), 25, 0, ANY),
    tunable("glibc.malloc.perturb", Some("MALLOC_PERTURB_"), 25, 0, 255),
    tunable("glibc.malloc.mmap_max", Some("MALLOC_MMAP_MAX_"), 25, 0, i32::MAX as u64),
    tunable("glibc.malloc.mmap_threshold", Some("MALLOC_MMAP_THRESHOLD_"), 25, 0, ANY),
    tunable("glibc.malloc.trim_threshold", Some("MALLOC_TRIM_THRESHOLD_"), 25, 0, ANY),
    tunable("glibc.malloc.arena_max", Some("MALLOC_ARENA_MAX"), 25, 1, ANY),
    tunable("glibc.malloc.arena_test", Some("MALLOC_ARENA_TEST"), 25, 1, ANY),
    tunable("glibc.malloc.tcache_max", None, 26, 0, 4 << 20),
    tunable("glibc.malloc.tcache_count", None, 26, 0, u16::MAX as u64),
    tunable("glibc.malloc.tcache_unsorted_limit", None, 26, 0, ANY),
    tunable("glibc.malloc.mxfast", None, 31, 0, 160),
    tunable("glibc.malloc.hugetlb", None, 35, 0, ANY),
];

/// Other tunables that bear on memory: stacks kept for new threads, labels of mappings.
const OTHERS: [Tunable; 2] = [
    tunable("glibc.pthread.stack_cache_size", None, 34, 0, ANY),
    tunable("glibc.mem.decorate_maps", None, 39, 0, 1),
];

/// "MALLOC_ARENA_MAX" and its like; `None` for what is nothing of glibc's, not even misspelt.
pub(super) fn alias(program: &Program, name: &str, value: &str) -> Option<Remark> {
    let aliases = || MALLOC.iter().filter_map(|tunable| tunable.alias);
    let Some(tunable) = MALLOC.iter().find(|tunable| tunable.alias == Some(name)) else {
        // jemalloc's and others' own names begin so too.
        let ours = name.starts_with("MALLOC_") || name.starts_with("M_");
        let meant = nearest(name, aliases()).or_else(|| upper_of_mallopt(name));
        return meant.filter(|_| ours).map(|meant| {
            Remark::new(Verdict::Misspelt, "no C library reads this name, and nothing is set")
                .instead(format!("{meant}={value}"))
        });
    };
    Some(not_here(program).unwrap_or_else(|| number(program, tunable, value)))
}

/// mallopt(3)'s names, taken for variables' names.
fn upper_of_mallopt(name: &str) -> Option<&'static str> {
    let rest = name.strip_prefix("M_").or_else(|| name.strip_prefix("MALLOC_"))?.trim_end_matches('_');
    MALLOC
        .iter()
        .filter_map(|tunable| tunable.alias)
        .find(|alias| alias["MALLOC_".len()..].trim_end_matches('_') == rest)
}

/// Where glibc's malloc is not what the program uses.
fn not_here(program: &Program) -> Option<Remark> {
    if program.libraries().any(|name| name.starts_with("ld-musl")) || program.kinds.contains(&Kind::Musl) {
        return Some(Remark::new(Verdict::NoEffect, "it runs musl's malloc, which has no settings"));
    }
    if !program.may_run(Kind::Glibc) || only_another(program) {
        let says = format!("it runs {}, which does not read it", program.runs());
        return Some(Remark::new(Verdict::NoEffect, says));
    }
    let linked = program.libraries().any(is_libc) || program.kinds.contains(&Kind::Glibc);
    (!linked).then(|| {
        Remark::new(Verdict::NoEffect, "no GNU C library was found in it, and nothing else reads it")
    })
}

/// A preloaded or linked allocator takes glibc's place; what glibc's own malloc still serves is its start.
fn only_another(program: &Program) -> bool {
    [Kind::Jemalloc, Kind::Tcmalloc, Kind::Mimalloc, Kind::Ebbtide]
        .iter()
        .any(|kind| program.kinds.contains(kind))
        && !program.conf_names.iter().any(|name| name.starts_with("_RJEM") || name.starts_with("JE_"))
}

/// "glibc.malloc.arena_max=2:glibc.malloc.trim_threshold=131072".
pub(super) fn tunables(program: &Program, value: &str) -> Vec<Remark> {
    if let Some((2, ..=24)) = program.glibc {
        return vec![Remark::new(Verdict::Unknown, "glibc reads it from 2.25 on")];
    }
    let strict = program.glibc.is_some_and(|version| version >= (2, 39));
    let parts: Vec<&str> = value.split(':').collect();
    // What follows the last colon ends the parsing where it is no pair.
    let broken = parts.last().is_some_and(|last| !last.contains('='));
    let doubled = parts.iter().any(|part| part.matches('=').count() > 1);
    if strict && (broken || doubled) {
        let says = "glibc 2.39 and later ignores the whole of it where a part is no NAME=VALUE, and says so once, on stderr";
        return vec![Remark::new(Verdict::Invalid, says)];
    }
    parts.iter().filter(|part| !part.is_empty()).filter_map(|part| one(program, part)).collect()
}

fn one(program: &Program, part: &str) -> Option<Remark> {
    let Some((name, value)) = part.split_once('=') else {
        return Some(Remark::new(Verdict::Invalid, format!("{part} is no NAME=VALUE and is skipped")));
    };
    let all = || MALLOC.iter().chain(&OTHERS);
    let Some(tunable) = all().find(|tunable| tunable.name == name) else {
        if name.starts_with("glibc.tune.") {
            let says = format!("{name}: glibc.tune became glibc.cpu in 2.29");
            return Some(Remark::new(Verdict::Obsolete, says));
        }
        if let Some(meant) = nearest(name, all().map(|tunable| tunable.name)) {
            let says = format!("glibc has no {name}, and ignores it silently");
            return Some(Remark::new(Verdict::Misspelt, says).instead(format!("{meant}={value}")));
        }
        let memory = name.starts_with("glibc.malloc.") || !name.starts_with("glibc.");
        let says = format!("glibc has no {name}, and ignores it silently");
        return memory.then(|| Remark::new(Verdict::Unknown, says));
    };
    if let Some((major, minor)) = program.glibc.filter(|&version| version < (2, tunable.since)) {
        let says = format!(
            "{name} came with glibc 2.{}; this is {major}.{minor}, which ignores it silently",
            tunable.since
        );
        return Some(Remark::new(Verdict::Unknown, says));
    }
    let here = if name.starts_with("glibc.malloc.") { not_here(program) } else { None };
    Some(here.unwrap_or_else(|| number(program, tunable, value)))
}

/// What a value is read as, and whether it is taken.
fn number(program: &Program, tunable: &Tunable, value: &str) -> Remark {
    let name = tunable.name;
    let (read, rest) = strtoul(value);
    let strict = program.glibc.is_some_and(|version| version >= (2, 39));
    if !rest.is_empty() || value.is_empty() {
        let says = match strict {
            true => format!("'{value}' is no number: glibc 2.39 and later ignores it"),
            false => format!("{name} knows no units: '{value}' is read as {read}"),
        };
        let remark = Remark::new(Verdict::Invalid, says);
        return match with_unit(read, rest) {
            Some(bytes) => remark.instead(format!("{name}={}", bytes.0)),
            None => remark,
        };
    }
    let most = match name {
        // 64 bins of 16 bytes until 2.42 brought large ones (MAX_TCACHE_SIZE, malloc/malloc.c).
        "glibc.malloc.tcache_max" if program.glibc.is_some_and(|version| version < (2, 42)) => 1032,
        // HEAP_MAX_SIZE / 2, until 2.35 took the check away.
        "glibc.malloc.mmap_threshold" if program.glibc.is_some_and(|version| version < (2, 35)) => 32 << 20,
        _ => tunable.most,
    };
    if read < tunable.least || read > most {
        let takes = if most == ANY { "and more".to_owned() } else { format!("to {most}") };
        let says = format!("{name} takes {} {takes}: {read} is ignored silently", tunable.least);
        return Remark::new(Verdict::Invalid, says);
    }
    effect(program, name, read)
}

fn effect(program: &Program, name: &str, value: u64) -> Remark {
    use Verdict::{Doubtful, Effective, NoEffect};
    match name {
        "glibc.malloc.check" if program.glibc.is_some_and(|version| version >= (2, 34)) => {
            let debug = program.libraries().any(|name| name.starts_with("libc_malloc_debug.so"));
            match debug {
                true => Remark::new(Doubtful, "checks every block: slow, with one lock for all threads"),
                false => {
                    Remark::new(NoEffect, "from glibc 2.34 on only with LD_PRELOAD=libc_malloc_debug.so.0")
                }
            }
        }
        "glibc.malloc.perturb" if value > 0 => Remark::new(
            Doubtful,
            "a debugging aid: every block is written when allocated and when freed, which makes all of it resident",
        ),
        "glibc.malloc.arena_max" => {
            let arenas = if value == 1 { "arena" } else { "arenas" };
            Remark::new(Effective, format!("at most {value} {arenas}; threads share the locks"))
        }
        "glibc.malloc.trim_threshold" if value > 1 << 30 => Remark::new(
            Doubtful,
            format!("the heap's top is given back only from {} of free memory on", Bytes(value)),
        ),
        "glibc.malloc.trim_threshold" | "glibc.malloc.mmap_threshold" => Remark::new(
            Effective,
            format!(
                "{}, and no threshold adapts itself any more: freeing a large block raises none",
                Bytes(value)
            ),
        ),
        "glibc.malloc.mmap_max" if value == 0 => Remark::new(
            Doubtful,
            "large blocks come from the heap too, and are given back only when they are on top of it",
        ),
        "glibc.malloc.hugetlb" if value > 0 => {
            Remark::new(Doubtful, "malloc asks for huge pages: faster, and more memory for sparse heaps")
        }
        _ => Remark::new(Effective, format!("{name} is {value}")),
    }
}

/// A number as strtoul(3) with base 0 reads it, and what it leaves.
fn strtoul(text: &str) -> (u64, &str) {
    let text = text.trim_start();
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, base) = match hex {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_hexdigit()) => (rest, 16),
        _ if text.starts_with('0') => (text, 8),
        _ => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(base)).unwrap_or(digits.len());
    let (number, rest) = digits.split_at(end);
    let value = if number.is_empty() { 0 } else { u64::from_str_radix(number, base).unwrap_or(u64::MAX) };
    (value, rest)
}

/// What was meant by "128K".
fn with_unit(number: u64, unit: &str) -> Option<Bytes> {
    let unit = unit.trim().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    (number > 0).then(|| Bytes(number) * (1 << shift))
}

#[cfg(test)]
mod tests {
    use super::super::environ::tests::{program, verdicts};
    use super::*;
    use Verdict::*;
    use proptest::prelude::*;

    #[test]
    fn variables() {
        for (environ, expected) in [
            ("MALLOC_ARENA_MAX=2", vec![Effective]),
            ("MALLOC_ARENA_MAX=0", vec![Invalid]),
            ("MALLOC_ARENA_MAX_=2", vec![Misspelt]),
            ("MALLOC_TRIM_THRESHOLD=131072", vec![Misspelt]),
            ("M_TRIM_THRESHOLD=131072", vec![Misspelt]),
            ("MALLOC_TRIM_THRESHOLD_=131072", vec![Effective]),
            ("MALLOC_TRIM_THRESHOLD_=128K", vec![Invalid]),
            ("MALLOC_TRIM_THRESHOLD_=", vec![Invalid]),
            ("MALLOC_CHECK_=3", vec![NoEffect]),
            ("MALLOC_PERTURB_=85", vec![Doubtful]),
            ("MALLOC_MMAP_MAX_=0", vec![Doubtful]),
            ("MALLOC_SOMETHING_ELSE=1", vec![]),
        ] {
            assert_eq!(verdicts(program(), environ), expected, "{environ}");
        }
        let remark = alias(&program(), "MALLOC_TRIM_THRESHOLD_", "128K").unwrap();
        assert_eq!(remark.instead.as_deref(), Some("glibc.malloc.trim_threshold=131072"));
        let remark = alias(&program(), "MALLOC_TRIM_THRESHOLD", "1").unwrap();
        assert_eq!(remark.instead.as_deref(), Some("MALLOC_TRIM_THRESHOLD_=1"));
    }

    #[test]
    fn tunables_by_version() {
        let of = |minor, value: &str| {
            verdicts(Program { glibc: Some((2, minor)), ..program() }, &format!("GLIBC_TUNABLES={value}"))
        };
        assert_eq!(of(36, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"), [Effective, Doubtful]);
        assert_eq!(of(31, "glibc.malloc.hugetlb=1"), [Unknown]);
        assert_eq!(of(36, "glibc.malloc.arenas_max=2"), [Misspelt]);
        assert_eq!(of(36, "glibc.malloc.nonsense=2"), [Unknown]);
        assert_eq!(of(36, "glibc.rtld.nns=2"), []);
        assert_eq!(of(36, "glibc.tune.hwcaps=x"), [Obsolete]);
        assert_eq!(of(36, "glibc.malloc.tcache_max=4096"), [Invalid]);
        assert_eq!(of(42, "glibc.malloc.tcache_max=4096"), [Effective]);
        assert_eq!(of(31, "glibc.malloc.mmap_threshold=67108864"), [Invalid]);
        assert_eq!(of(36, "glibc.malloc.mmap_threshold=67108864"), [Effective]);
        assert_eq!(of(36, "glibc.malloc.arena_max=2:oops"), [Effective, Invalid]);
        assert_eq!(of(39, "glibc.malloc.arena_max=2:oops"), [Invalid], "all of it is ignored");
        assert_eq!(of(24, "glibc.malloc.arena_max=2"), [Unknown]);
    }

    #[test]
    fn another_allocator_does_not_read_them() {
        let jemalloc = Program { kinds: [Kind::Jemalloc].into(), ..program() };
        let static_musl = Program { mapped: Default::default(), kinds: Default::default(), ..program() };
        assert_eq!(verdicts(static_musl, "MALLOC_ARENA_MAX=2"), [NoEffect]);
        let debians_musl = Program { kinds: [Kind::Musl].into(), ..program() };
        assert_eq!(verdicts(debians_musl, "MALLOC_ARENA_MAX=2"), [NoEffect]);
        assert_eq!(
            verdicts(jemalloc, "MALLOC_ARENA_MAX=2 GLIBC_TUNABLES=glibc.malloc.arena_max=2"),
            [NoEffect, NoEffect]
        );
    }

    #[test]
    fn numbers_as_glibc_reads_them() {
        for (text, expected) in [
            ("10", (10, "")),
            ("0x10", (16, "")),
            ("010", (8, "")),
            ("64M", (64, "M")),
            ("x", (0, "x")),
            ("0", (0, "")),
            ("0x", (0, "x")),
        ] {
            assert_eq!(strtoul(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let (number, rest) = strtoul(&text);
            let _ = with_unit(number, rest);
        }
    }
}
