//! Ratios as bars, for people: an SVG.

use crate::contest::Line;
use std::fmt::Write;

const ROW: usize = 22;
/// Where the bars begin.
const LEFT: usize = 420;
/// Length of a bar that reaches its limit.
const WHOLE: f64 = 240.0;
/// Longer bars are cut off.
const MOST: f64 = 1.5;

/// One bar a line, with a mark where objblk reaches its limit and the spread of the rounds.
pub fn bars(lines: &[Line]) -> String {
    let (width, height) = (LEFT + (WHOLE * MOST) as usize + 80, (lines.len() + 1) * ROW);
    let at = |ratio: f64| LEFT as f64 + WHOLE * ratio.min(MOST);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, line) in lines.iter().enumerate() {
        let [ratio, least, most] = line.ratio();
        let (top, middle) = (number * ROW + ROW / 2, (number + 1) * ROW);
        let (bar, base) = (at(ratio) - LEFT as f64, middle + 4);
        let (name, end) = (LEFT - 8, at(most.max(ratio)) + 6.0);
        let (from, to) = (at(least), at(most));
        let (part, work) = (line.part, &line.work);
        let drawn = writeln!(
            svg,
            "<text x=\"{name}\" y=\"{base}\" text-anchor=\"end\">{part}: {work}</text>\n\
             <rect x=\"{LEFT}\" y=\"{}\" width=\"{bar:.1}\" height=\"14\" fill=\"#4a90c2\"/>\n\
             <path d=\"M{from:.1} {middle}H{to:.1}\" stroke=\"black\"/>\n\
             <text x=\"{end:.1}\" y=\"{base}\">{ratio:.2}</text>",
            top + 4,
        );
        drawn.expect("a string takes everything");
    }
    let limit = at(1.0);
    svg + &format!(
        "<path d=\"M{limit} 0V{height}\" stroke=\"#c33\" stroke-dasharray=\"4\"/>\n</svg>\n"
    )
}
