//! The pages of `ebb causes ID` keep their form: the same sections in the same order, readable raw in a
//! terminal of 80 columns, and no command of ebb that does not exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_explain::Cause;

const SECTIONS: [&str; 6] = [
    "## What it is",
    "## How to see it by hand",
    "## What helps",
    "## What people wrongly do",
    "## What ebb looks at",
    "## Sources",
];

const VERBS: [&str; 11] =
    ["ps", "explain", "heap", "fork", "dentries", "reclaim", "tune", "causes", "run", "top", "agent"];

#[test]
fn every_page_has_its_title_and_sections_in_order() {
    for cause in Cause::ALL {
        let page = cause.page();
        let title = page.lines().next().unwrap_or_default();
        let line = title.strip_prefix(&format!("# {cause}: ")).unwrap_or_default();
        assert!(line.trim().len() > 10, "{cause}: {title}");

        let headings: Vec<&str> = page.lines().skip(1).filter(|line| line.starts_with('#')).collect();
        assert_eq!(headings, SECTIONS, "{cause}");
        for section in page.split("\n## ").skip(1) {
            let text = section.lines().skip(1).filter(|line| !line.is_empty()).count();
            assert!(text >= 2, "{cause}: nothing is said under {:?}", section.lines().next());
        }
    }
}

#[test]
fn every_page_prints_raw_in_a_terminal() {
    for cause in Cause::ALL {
        let page = cause.page();
        assert!((25..=60).contains(&page.lines().count()), "{cause}: {} lines", page.lines().count());
        assert!(page.ends_with('\n') && !page.ends_with("\n\n"), "{cause}");
        assert!(page.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{cause}: not plain ASCII");
        for line in page.lines() {
            assert!(line.len() <= 78, "{cause}: {line:?} has {} columns", line.len());
            assert!(!line.ends_with(' '), "{cause}: {line:?} ends in a blank");
            assert!(!line.starts_with(['|', '<']), "{cause}: {line:?} is no plain Markdown");
        }
    }
}

#[test]
fn commands_of_ebb_exist() {
    for cause in Cause::ALL {
        for command in cause.page().split("`ebb ").skip(1) {
            let verb = command.split([' ', '`', '\n']).next().unwrap_or_default();
            assert!(VERBS.contains(&verb), "{cause}: ebb {verb}");
        }
    }
}

#[test]
fn every_page_shows_commands_and_names_its_sources() {
    for cause in Cause::ALL {
        let page = cause.page();
        let by_hand = page.split("\n## ").nth(2).unwrap_or_default();
        assert!(by_hand.lines().any(|line| line.starts_with("    ")), "{cause}: no command to try");
        let sources = page.rsplit("\n## ").next().unwrap_or_default();
        assert!(sources.contains("(5)") || sources.contains("://") || sources.contains(".rst"), "{cause}");
    }
}
