//! Variables of managed runtimes: Go, the JVM, Node, CPython.

use super::program::Program;
use crate::tune::judge::{Remark, Verdict};
use ebbtide_explain::rules::caps;
use ebbtide_observe::Bytes;

/// From this share of the limit on a heap leaves too little for what is no heap: threads, code, buffers.
const TIGHT: f64 = 0.9;

/// GOMEMLIMIT and GOGC (runtime/extern.go and parseByteCount in runtime/string.go, Go 1.19 and later). A Go program
/// does not start with a GOMEMLIMIT that is none, so where one is wrong the program is no Go program, or an older one.
pub(super) fn go(program: &Program, name: &str, value: &str) -> Option<Remark> {
    if name == "GOGC" {
        let good = value == "off" || value.parse::<i32>().is_ok();
        return Some(match (good, value) {
            (false, _) => Remark::new(Verdict::Invalid, "neither 'off' nor a number: Go takes 100"),
            (true, "off") => Remark::new(
                Verdict::Doubtful,
                "never collects, but for GOMEMLIMIT where that is set: without it the heap grows until it is killed",
            ),
            (true, _) => Remark::new(
                Verdict::Effective,
                format!("Go collects when the heap has grown by {value}% over what lived"),
            ),
        });
    }
    if value == "off" {
        return Some(Remark::new(Verdict::Effective, "no limit, as without it"));
    }
    let Some(limit) = byte_count(value) else {
        let says = "Go takes a number with B, KiB, MiB, GiB or TiB, and does not start with anything else: this program does not read it";
        return Some(Remark::new(Verdict::NoEffect, says));
    };
    Some(against(program, limit, "the Go heap may grow to", |mib| format!("GOMEMLIMIT={mib}MiB")))
}

/// "512MiB", "1073741824".
fn byte_count(text: &str) -> Option<Bytes> {
    const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];
    let (digits, shift) = UNITS
        .iter()
        .find_map(|&(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, shift)))
        .unwrap_or((text, 0));
    let digits = digits.bytes().all(|b| b.is_ascii_digit()).then_some(digits)?;
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|&n| n <= i64::MAX as u64).map(Bytes)
}

/// Options in a variable, of a JVM or of Node.
pub(super) fn heap_options(program: &Program, name: &str, value: &str) -> Option<Remark> {
    let (runtime, runs) = if name == "NODE_OPTIONS" {
        ("node", first(program).is_some_and(|first| first.ends_with("node") || first.ends_with("nodejs")))
    } else {
        ("java", program.libraries().any(|library| library == "libjvm.so"))
    };
    if !runs {
        return None;
    }
    let line = format!("{runtime}\0{}", value.split_whitespace().collect::<Vec<_>>().join("\0"));
    let found = caps::caps(line.as_bytes());
    if name == "JAVA_OPTS" {
        let passed = found
            .iter()
            .any(|cap| program.cmdline.split(|&b| b == 0).any(|argument| argument == cap.setting.as_bytes()));
        let says = "the JVM itself does not read JAVA_OPTS, and no script has put it on this command line";
        return (!passed && !found.is_empty())
            .then(|| Remark::new(Verdict::NoEffect, says).instead(format!("JAVA_TOOL_OPTIONS={value}")));
    }
    let sum: Bytes = found.iter().map(|cap| cap.bytes).sum();
    let better = |mib| match runtime {
        "node" => format!("--max-old-space-size={mib}"),
        _ => format!("-Xmx{mib}m, and the other heaps below it"),
    };
    (!found.is_empty()).then(|| against(program, sum, "its heaps may grow to", better))
}

fn first(program: &Program) -> Option<String> {
    program.cmdline.split(|&b| b == 0).next().map(|first| String::from_utf8_lossy(first).into_owned())
}

/// `better` writes a cap of so many MiB: three quarters of the limit.
fn against(program: &Program, cap: Bytes, what: &str, better: impl Fn(u64) -> String) -> Remark {
    let Some(limit) = program.limit else { return Remark::new(Verdict::Effective, format!("{what} {cap}")) };
    let says = format!("{what} {cap}, and its memory limit is {limit}");
    let better = better(limit.scaled(0.75).0 >> 20);
    if cap > limit {
        return Remark::new(
            Verdict::Harmful,
            format!("{says}: it is killed before it notices that it is full"),
        )
        .instead(better);
    }
    if cap.share_of(limit) > TIGHT {
        let says = format!("{says}: little is left for threads, code and buffers");
        return Remark::new(Verdict::Doubtful, says).instead(better);
    }
    Remark::new(Verdict::Effective, says)
}

/// PYTHONMALLOC (Python/preconfig.c; `mimalloc` came with 3.13). CPython does not start with an unknown one.
pub(super) fn python_malloc(program: &Program, value: &str) -> Remark {
    let is_python = first(program).is_some_and(|first| first.contains("python"))
        || program
            .libraries()
            .any(|library| library.starts_with("libpython") || library.starts_with("python3"));
    if !is_python {
        return Remark::new(Verdict::NoEffect, "only CPython reads it, and this is none");
    }
    match value {
        "" | "default" | "pymalloc" => {
            Remark::new(Verdict::Effective, "CPython's own allocator, as without it")
        }
        "malloc" => Remark::new(
            Verdict::Effective,
            "the C library's malloc for everything: slower, and what gives back is that malloc's business",
        ),
        "mimalloc" => Remark::new(Verdict::Effective, "mimalloc (3.13 and later)"),
        "debug" | "malloc_debug" | "pymalloc_debug" | "mimalloc_debug" => Remark::new(
            Verdict::Doubtful,
            "a debugging aid: each block is larger by 24 bytes or more, and checked",
        ),
        _ => Remark::new(Verdict::Invalid, "no allocator of CPython's: it does not start with this value"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::environ::tests::{program, verdicts};
    use super::*;
    use Verdict::*;
    use proptest::prelude::*;

    #[test]
    fn go_limits() {
        for (environ, expected) in [
            ("GOMEMLIMIT=1GiB", Effective),
            ("GOMEMLIMIT=2000MiB", Doubtful),
            ("GOMEMLIMIT=4GiB", Harmful),
            ("GOMEMLIMIT=1G", NoEffect),
            ("GOMEMLIMIT=off", Effective),
            ("GOGC=off", Doubtful),
            ("GOGC=50", Effective),
            ("GOGC=50%", Invalid),
        ] {
            assert_eq!(verdicts(program(), environ), [expected], "{environ}");
        }
        assert_eq!(byte_count("9223372036854775808"), None);
        assert_eq!(byte_count("MiB"), None);
    }

    #[test]
    fn jvm_options() {
        let jvm = || {
            let mut jvm = program();
            jvm.mapped.insert("/usr/lib/jvm/lib/server/libjvm.so".into());
            jvm.cmdline = b"java\0-jar\0x.jar\0".to_vec();
            jvm
        };
        assert_eq!(verdicts(jvm(), "JAVA_TOOL_OPTIONS=-Xmx4g"), [Harmful]);
        assert_eq!(verdicts(jvm(), "JAVA_TOOL_OPTIONS=-Xmx1g"), [Effective]);
        assert_eq!(verdicts(jvm(), "JAVA_TOOL_OPTIONS=-Dx=y"), []);
        assert_eq!(verdicts(jvm(), "JAVA_OPTS=-Xmx1g"), [NoEffect]);
        let passed = Program { cmdline: b"java\0-Xmx1g\0-jar\0".to_vec(), ..jvm() };
        assert_eq!(verdicts(passed, "JAVA_OPTS=-Xmx1g"), []);
        assert_eq!(verdicts(program(), "JAVA_TOOL_OPTIONS=-Xmx4g"), [], "no JVM");
    }

    #[test]
    fn python() {
        let python = || Program { cmdline: b"/usr/bin/python3\0".to_vec(), ..program() };
        for (value, expected) in [("malloc", Effective), ("debug", Doubtful), ("jemalloc", Invalid)] {
            assert_eq!(verdicts(python(), &format!("PYTHONMALLOC={value}")), [expected], "{value}");
        }
        assert_eq!(verdicts(program(), "PYTHONMALLOC=malloc"), [NoEffect]);
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            byte_count(&text);
        }
    }
}
