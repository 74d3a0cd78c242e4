//! A report in Prometheus' text format.
//!
//! Invariants: labels come from the source only (fields, type names), never from keys of maps, and there are no more
//! than [`MOST_PLACES`](crate::MOST_PLACES) of them.

use crate::{Bytes, Report};
use std::fmt::{self, Display, Write};

impl Report {
    /// Writes the report of one or, more often, all cascades so far ([`Registry::totals`](crate::Registry::totals)) as
    /// Prometheus text.
    ///
    /// ```
    /// # use ebbtide_shrink::Registry;
    /// let mut page = String::new();
    /// Registry::new().totals().prometheus(&mut page)?;
    /// assert!(page.contains("shrink_cascades_total 0\n"));
    /// # Ok::<(), std::fmt::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `out` says.
    pub fn prometheus(&self, out: &mut impl Write) -> fmt::Result {
        let mut total = |name: &str, help: &str, value: &dyn Display| {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}")
        };
        total("shrink_cascades_total", "Cascades that ended.", &self.cascades)?;
        total("shrink_slices_total", "Slices they took.", &self.slices)?;
        total("shrink_seconds_total", "Time in slices.", &self.time.as_secs_f64())?;
        total("shrink_slack_found_bytes_total", "Bytes beyond need that first walks found.", &self.slack.0)?;
        total("shrink_refused_total", "Smaller buffers that the allocator refused.", &self.refused)?;
        total("shrink_busy_total", "Locks held by others at every try.", &self.busy)?;
        total("shrink_resting_total", "Buffers left alone because they were cut lately.", &self.resting)?;
        total("shrink_too_large_to_copy_total", "Buffers too large to copy.", &self.too_large_to_copy)?;
        let longest = self.longest_slice.as_secs_f64();
        writeln!(out, "# HELP shrink_longest_slice_seconds Time of the longest slice so far.")?;
        writeln!(out, "# TYPE shrink_longest_slice_seconds gauge\nshrink_longest_slice_seconds {longest}")?;
        writeln!(out, "# HELP shrink_returned_bytes_total Bytes given back to the allocator.")?;
        writeln!(out, "# TYPE shrink_returned_bytes_total counter")?;
        let mut named = Bytes::ZERO;
        for place in &self.places {
            named += place.returned;
            let path = Label(&place.path);
            let (kind, bytes) = (Label(place.kind), place.returned.0);
            writeln!(out, "shrink_returned_bytes_total{{place=\"{path}\",type=\"{kind}\"}} {bytes}")?;
        }
        let other = (self.returned - named).0;
        writeln!(out, "shrink_returned_bytes_total{{place=\"\",type=\"\"}} {other}")
    }
}

/// A label's value, escaped as the format asks.
struct Label<'a>(&'a str);

impl Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' | '"' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Policy, shrink_now};
    use std::collections::HashMap;

    #[test]
    fn keys_are_never_labels() {
        let mut queues = HashMap::from([("evil\"}\n", Vec::<u8>::with_capacity(5000))]);
        let report = shrink_now(&mut queues, &Policy::default());
        assert_eq!(report.spots[0].path, "[\"evil\\\"}\\n\"]");
        let mut text = String::new();
        report.prometheus(&mut text).unwrap();
        assert!(text.contains("shrink_returned_bytes_total{place=\"[*]\",type=\"Vec\"} 5000\n"), "{text}");
        assert!(!text.contains("evil"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
        }
    }
}
