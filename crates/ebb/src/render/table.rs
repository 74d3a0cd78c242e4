//! Tables without rules: columns as wide as their content, one of them giving way where the page is narrow.

use super::{Page, columns, cut, style};

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table of already escaped text.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

const GAP: usize = 2;

impl Table {
    /// A table with these columns; the last one takes what the page leaves over and is cut to fit.
    pub(crate) fn new(heads: &[(&'static str, Align)]) -> Table {
        Table { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Appends the table to `out`.
    pub(crate) fn render(&self, out: &mut String, page: Page) {
        let last = self.heads.len().saturating_sub(1);
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| columns(cell)).chain([columns(self.heads[column].0)]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..self.heads.len()).map(widest).collect();
        let fixed: usize = widths.iter().take(last).map(|width| width + GAP).sum();
        if let Some(width) = widths.last_mut() {
            *width = (*width).min(page.width.saturating_sub(fixed).max(8));
        }
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| (*head).to_owned()).collect();
        let faint = style::FAINT;
        out.push_str(&format!("{faint}{}{faint:#}\n", self.line(&heads, &widths)));
        for row in &self.rows {
            out.push_str(&self.line(row, &widths));
            out.push('\n');
        }
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (i, ((cell, &width), (_, align))) in cells.iter().zip(widths).zip(&self.heads).enumerate() {
            if i > 0 {
                line.push_str("  ");
            }
            let cell = cut(cell, width);
            let blanks = " ".repeat(width.saturating_sub(columns(&cell)));
            match align {
                Align::Left => line.extend([cell.as_str(), &blanks]),
                Align::Right => line.extend([blanks.as_str(), &cell]),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_gives_way() {
        let mut table = Table::new(&[("PID", Align::Right), ("COMMAND", Align::Left)]);
        table.row(vec!["1".into(), "a rather long command".into()]);
        table.row(vec!["12345".into(), "sh".into()]);
        let mut out = String::new();
        table.render(&mut out, Page { width: 20 });
        let plain = anstream::adapter::strip_str(&out).to_string();
        assert_eq!(plain, "  PID  COMMAND\n    1  a rather lon…\n12345  sh\n");
    }
}
