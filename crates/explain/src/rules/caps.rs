//! `limits-exceed-box`: what programs are allowed to take by their own settings, against what they may have.
//!
//! The settings are read from command lines: a JVM's heap, direct memory, metaspace and code cache, Node's old
//! space. A setting that is not given counts nothing here, so the sum is a lower bound.

use crate::{Cause, Finding};
use ebbtide_observe::Bytes;

/// One setting that lets a program grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// As it was written: "-Xmx4g".
    pub setting: String,
    /// How far it lets the program grow.
    pub bytes: Bytes,
}

/// The caps in a command line of NUL-separated arguments.
pub fn caps(cmdline: &[u8]) -> Vec<Cap> {
    let mut arguments = cmdline.split(|&b| b == 0).filter(|a| !a.is_empty()).map(String::from_utf8_lossy);
    let Some(program) = arguments.next() else { return Vec::new() };
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    let cap = |argument: &str| match program.as_str() {
        "java" => java(argument),
        "node" | "nodejs" => node(argument),
        _ => None,
    };
    let mut found: Vec<Cap> = Vec::new();
    for argument in arguments {
        // What stands behind the main class or script is the program's own business.
        if !argument.starts_with('-') && program != "java" {
            break;
        }
        let Some(bytes) = cap(&argument) else { continue };
        let key =
            |setting: &str| setting.split(|c: char| c == '=' || c.is_ascii_digit()).next().map(str::to_owned);
        // Of one setting given twice the last one counts.
        found.retain(|cap| key(&cap.setting) != key(&argument));
        found.push(Cap { setting: argument.into_owned(), bytes });
    }
    found
}

fn java(argument: &str) -> Option<Bytes> {
    const SETTINGS: [&str; 5] = [
        "-Xmx",
        "-XX:MaxHeapSize=",
        "-XX:MaxDirectMemorySize=",
        "-XX:MaxMetaspaceSize=",
        "-XX:ReservedCodeCacheSize=",
    ];
    SETTINGS.iter().find_map(|setting| size(argument.strip_prefix(setting)?))
}

fn node(argument: &str) -> Option<Bytes> {
    let argument = argument.replace('_', "-");
    let mib = argument.strip_prefix("--max-old-space-size=")?;
    mib.parse().ok().map(Bytes::from_mib)
}

/// "512m", "4G", "1048576".
fn size(text: &str) -> Option<Bytes> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    Some(Bytes(number) * (1 << shift))
}

/// The finding where `caps` together exceed `limit`, which `of` names.
pub(super) fn exceed(caps: &[(u32, Cap)], limit: Bytes, of: &str) -> Option<Finding> {
    let sum: Bytes = caps.iter().map(|(_, cap)| cap.bytes).sum();
    if sum <= limit {
        return None;
    }
    let summary = format!(
        "the programs may grow to {sum} by their own settings, but the limit is {limit}: they are killed before they \
         notice that they are full."
    );
    let mut finding = Finding::new(Cause::LimitsExceedBox, sum - limit, 0.93, summary)
        .evidence("memory limit", format!("{limit} ({of})"));
    for (pid, cap) in caps.iter().take(5) {
        finding =
            finding.evidence(format!("/proc/{pid}/cmdline"), format!("{} allows {}", cap.setting, cap.bytes));
    }
    Some(finding.not(Cause::Leak, "a heap that fills up to what it was allowed does what it was told").lever(
        "lower-caps",
        "leave a quarter of the limit for what is no heap: threads, code, buffers",
        Bytes::ZERO,
        "takes a restart of the program",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(line: &str) -> Vec<(String, u64)> {
        let line = line.replace(' ', "\0");
        caps(line.as_bytes()).into_iter().map(|cap| (cap.setting, cap.bytes.0 >> 20)).collect()
    }

    #[test]
    fn jvm_and_node() {
        assert_eq!(
            of("/usr/bin/java -Xmx2g -XX:MaxDirectMemorySize=512m -jar x"),
            [("-Xmx2g".into(), 2048), ("-XX:MaxDirectMemorySize=512m".into(), 512)]
        );
        assert_eq!(of("java -Xmx1g -Xmx3g"), [("-Xmx3g".into(), 3072)], "the last one counts");
        assert_eq!(
            of("node --max_old_space_size=4096 x.js --max-old-space-size=1"),
            [("--max_old_space_size=4096".into(), 4096)]
        );
        assert_eq!(of("bash -Xmx2g"), []);
        assert_eq!(of("java -Xmx -Xmx1x"), []);
    }

    #[test]
    fn only_beyond_the_limit() {
        let cap = |gib| vec![(7, Cap { setting: "-Xmx".into(), bytes: Bytes::from_gib(gib) })];
        assert!(exceed(&cap(2), Bytes::from_gib(2), "x").is_none());
        assert_eq!(exceed(&cap(3), Bytes::from_gib(2), "x").unwrap().bytes, Bytes::from_gib(1));
    }

    proptest! {
        #[test]
        fn never_panics(line: Vec<u8>) {
            caps(&line);
        }
    }
}
