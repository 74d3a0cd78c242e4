//! Draws memory over time as SVG: one line per allocator, the last one thick, and the live bytes as a grey area where
//! they are known. Written by hand, because a page of elements is all there is to it.

use std::fmt::Write as _;

/// Seconds since the start, and bytes.
pub(crate) type Point = (f64, u64);

/// A line of the plot and its name.
pub(crate) struct Curve<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<Point>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 130.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 5] = ["#7f7f7f", "#d62728", "#ff7f0e", "#2ca02c", "#9467bd"];
const LAST: &str = "#0057b7";

/// The picture of one bench.
pub(crate) fn svg(title: &str, curves: &[Curve<'_>], live: &[Point]) -> String {
    let points = || curves.iter().flat_map(|c| &c.points);
    let end = points().map(|p| p.0).fold(1.0, f64::max);
    let top = points().map(|p| p.1 as f64 / f64::from(1 << 20)).fold(1.0, f64::max) * 1.05;
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - RIGHT);
    let y = |bytes: u64| HEIGHT - BOTTOM - bytes as f64 / f64::from(1 << 20) / top * (HEIGHT - TOP - BOTTOM);
    let line = |points: &[Point]| {
        points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect::<Vec<_>>().join(" ")
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}</text>\n"
    );
    for i in 0..=4 {
        let (mib, at) = (top * f64::from(i) / 4.0, end * f64::from(i) / 4.0);
        let (level, right) = (y((mib * f64::from(1 << 20)) as u64), WIDTH - RIGHT);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {level:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{:.0}\" y=\"{:.1}\" \
             text-anchor=\"end\">{mib:.0}</text><text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{at:.0}</text>",
            LEFT - 6.0,
            level + 4.0,
            x(at),
            HEIGHT - BOTTOM + 18.0
        );
    }
    if !live.is_empty() {
        let (from, to, floor) = (x(0.0), x(end), y(0));
        let live = line(live);
        let _ = writeln!(
            out,
            "<polygon points=\"{from:.1},{floor:.1} {live} {to:.1},{floor:.1}\" fill=\"#ccc\"/>"
        );
    }
    for (i, curve) in curves.iter().enumerate() {
        let last = i + 1 == curves.len();
        let colour = COLOURS.get(i % COLOURS.len()).filter(|_| !last).unwrap_or(&LAST);
        let width = if last { 2.5 } else { 1.3 };
        let points = line(&curve.points);
        let _ = writeln!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{}</text>",
            WIDTH - RIGHT + 10.0,
            TOP + 16.0 * i as f64 + 10.0,
            curve.name
        );
    }
    out.push_str("</svg>\n");
    out
}
