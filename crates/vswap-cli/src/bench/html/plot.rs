//! Plots as inline SVG.

use std::fmt::Write as _;

use super::escape;

const LABELS: f64 = 170.0;
const PLOT: f64 = 400.0;
const TEXTS: f64 = 130.0;
const BAR: f64 = 24.0;
const HEIGHT: f64 = 220.0;
const LEGEND_LINE: f64 = 18.0;

/// Tells lines of one class apart.
const DASHES: [&str; 4] = ["none", "6 3", "2 3", "8 3 2 3"];

/// One row of a bar plot.
pub struct Bar {
    /// On its left.
    pub label: String,
    /// What colours it.
    pub class: &'static str,
    /// The least, the median and the greatest.
    pub values: [f64; 3],
    /// On its right.
    pub text: String,
}

/// One line of a plot of distributions.
pub struct Line {
    /// In the legend.
    pub label: String,
    /// What colours it.
    pub class: &'static str,
    /// A time and the share of what took no longer, in rising order.
    pub points: Vec<(f64, f64)>,
}

/// Horizontal bars, one below the other.
pub fn bars(bars: &[Bar]) -> String {
    let greatest = bars.iter().map(|bar| bar.values[2]).fold(1.0, f64::max);
    let x = |value: f64| LABELS + PLOT * value / greatest;
    let mut svg = open(LABELS + PLOT + TEXTS, BAR * bars.len() as f64 + 4.0);
    for (index, bar) in bars.iter().enumerate() {
        let [min, median, max] = bar.values;
        let top = BAR * index as f64 + 4.0;
        let middle = top + BAR / 2.0 - 2.0;
        let (label, text, class) = (escape(&bar.label), escape(&bar.text), bar.class);
        let (end, width, height) = (x(max) + 6.0, x(median) - LABELS, BAR - 6.0);
        let (from, to, base) = (x(min), x(max), middle + 4.0);
        let _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{base:.1}\">{label}</text>\
             <rect class=\"{class}\" x=\"{LABELS}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height}\" />\
             <line class=\"spread\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" />\
             <text x=\"{end:.1}\" y=\"{base:.1}\">{text}</text>",
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Cumulative distributions over a logarithmic scale of times.
pub fn distributions(lines: &[Line]) -> String {
    let times =
        || lines.iter().flat_map(|line| &line.points).map(|(time, _)| time.max(1.0).log10());
    let first = times().fold(f64::INFINITY, f64::min).floor();
    let last = times().fold(first + 1.0, f64::max).ceil();
    let x = |time: f64| 40.0 + PLOT * (time.max(1.0).log10() - first) / (last - first);
    let y = |share: f64| 10.0 + HEIGHT * (1.0 - share);
    let legend = y(0.0) + 40.0;
    let mut svg = open(40.0 + PLOT + 40.0, legend + LEGEND_LINE * lines.len() as f64);
    for decade in first as i32..=last as i32 {
        let (at, bottom) = (x(10_f64.powi(decade)), y(0.0));
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\" />\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            y(1.0),
            bottom + 16.0,
            duration(decade),
        );
    }
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (at, right) = (y(share), 40.0 + PLOT);
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"40\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" />\
             <text x=\"34\" y=\"{:.1}\" text-anchor=\"end\">{share}</text>",
            at + 4.0,
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let same_class = lines[..index].iter().filter(|other| other.class == line.class).count();
        let dash = DASHES[same_class % DASHES.len()];
        let points: Vec<_> = line
            .points
            .iter()
            .map(|&(time, share)| format!("{:.1},{:.1}", x(time), y(share)))
            .collect();
        let (points, class, label) = (points.join(" "), line.class, escape(&line.label));
        let top = legend + LEGEND_LINE * index as f64;
        let style =
            format!("class=\"line {class}\" style=\"fill: none\" stroke-dasharray=\"{dash}\"");
        let _ = writeln!(
            svg,
            "<polyline {style} points=\"{points}\" />\
             <line {style} x1=\"40\" x2=\"80\" y1=\"{top:.1}\" y2=\"{top:.1}\" />\
             <text x=\"88\" y=\"{:.1}\">{label}</text>",
            top + 4.0,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n"
    )
}

/// A power of ten of ns.
fn duration(decade: i32) -> String {
    let (power, unit) = match decade {
        ..3 => (decade, "ns"),
        3..6 => (decade - 3, "µs"),
        6..9 => (decade - 6, "ms"),
        _ => (decade - 9, "s"),
    };
    format!("{} {unit}", 10_i64.pow(power.max(0) as u32))
}
