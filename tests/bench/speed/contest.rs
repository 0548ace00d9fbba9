//! Contestants that take turns, and what comes of it.

use crate::table::{print, row};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// How often and how long.
#[derive(Debug)]
pub struct Settings {
    pub rounds: usize,
    seconds: Option<f64>,
}

impl Settings {
    /// From the words `rounds=N` and `seconds=N`; the others are returned.
    pub fn parse(words: &[String]) -> (Settings, Vec<&str>) {
        let mut settings = Settings { rounds: 5, seconds: None };
        let mut others = Vec::new();
        for word in words {
            match word.split_once('=') {
                Some(("rounds", number)) => settings.rounds = number.parse().expect("a number"),
                Some(("seconds", number)) => settings.seconds = Some(number.parse().unwrap()),
                _ => others.push(word.as_str()),
            }
        }
        assert!(settings.rounds > 0, "at least one round");
        (settings, others)
    }

    /// How long a turn takes, unless somebody said.
    pub fn turn(&self, usual: f64) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(usual))
    }
}

/// Its figure of a round: a rate, so that more is better.
pub type Turn<'a> = &'a mut dyn FnMut() -> f64;

/// The first is objblk, the second its limit.
pub fn take_turns(rounds: usize, turns: [Turn<'_>; 2]) -> [Vec<f64>; 2] {
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for place in 0..turns.len() {
            let who = (round + place) % turns.len();
            figures[who].push(turns[who]());
        }
    }
    figures
}

/// What was measured of one kind of work.
#[derive(Debug)]
pub struct Line {
    pub part: &'static str,
    pub work: String,
    unit: &'static str,
    /// What objblk is compared with.
    limit: &'static str,
    /// Those of objblk and those of the limit, by round.
    figures: [Vec<f64>; 2],
}

impl Line {
    /// By round.
    fn ratios(&self) -> Vec<f64> {
        let [ours, limits] = &self.figures;
        ours.iter().zip(limits).map(|(ours, limit)| ours / limit).collect()
    }

    /// The median ratio of a round, the least and the greatest.
    pub fn ratio(&self) -> [f64; 3] {
        let mut ratios = self.ratios();
        ratios.sort_by(f64::total_cmp);
        [median(&ratios), ratios[0], ratios[ratios.len() - 1]]
    }

    fn cells(&self) -> Vec<String> {
        let [ours, limit] = &self.figures;
        let [ratio, least, most] = self.ratio().map(|ratio| format!("{ratio:.2}"));
        row(&[
            &self.work,
            &self.unit,
            &short(median(ours)),
            &short(median(limit)),
            &ratio,
            &format!("{least}-{most}"),
            &self.limit,
        ])
    }

    fn json(&self) -> Value {
        let [ratio, least, most] = self.ratio();
        let named = ["objblk", self.limit].map(str::to_owned).into_iter();
        let rounds: Map<String, Value> =
            named.zip(self.figures.iter().map(|all| json!(all))).collect();
        json!({
            "part": self.part, "work": self.work, "unit": self.unit, "limit": self.limit,
            "rounds": rounds, "ratio": ratio, "ratio_min": least, "ratio_max": most,
        })
    }
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Report {
    part: &'static str,
    lines: Vec<Line>,
    failures: Vec<String>,
}

impl Report {
    /// The lines that follow are of this part.
    pub fn begin(&mut self, part: &'static str) {
        self.part = part;
    }

    /// Adds figures of a kind of work in `unit`, of objblk and of `limit`.
    pub fn add(
        &mut self,
        work: &str,
        unit: &'static str,
        limit: &'static str,
        figures: [Vec<f64>; 2],
    ) {
        let line = Line { part: self.part, work: work.to_owned(), unit, limit, figures };
        eprintln!("{}", line.json());
        self.lines.push(line);
    }

    /// Something is not as it has to be: see [`Report::verdict`].
    pub fn fail(&mut self, why: String) {
        self.failures.push(why);
    }

    /// Fails the run, once everything is measured and written, where a part has failed.
    pub fn verdict(&self) {
        assert!(self.failures.is_empty(), "failed:\n{}", self.failures.join("\n"));
    }

    /// Prints the lines of the part.
    pub fn print(&self) {
        let heading = ["work", "unit", "objblk", "limit", "ratio", "min-max", "the limit is"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(self.lines.iter().filter(|line| line.part == self.part).map(Line::cells));
        print(&format!("\n{}", self.part), &rows);
    }

    /// Writes all lines into the target directory.
    pub fn write(&self) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let lines: String = self.lines.iter().map(|line| format!("{}\n", line.json())).collect();
        std::fs::write(folder.join("speed.jsonl"), lines).unwrap();
        std::fs::write(folder.join("speed.svg"), crate::chart::bars(&self.lines)).unwrap();
        println!("\nwritten: {}", folder.join("speed.{jsonl,svg}").display());
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// With about three digits that count.
fn short(figure: f64) -> String {
    let digits = if figure < 10.0 { 2 } else { usize::from(figure < 100.0) };
    format!("{figure:.digits$}")
}
