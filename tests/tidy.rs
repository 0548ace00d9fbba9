//! Rules of the house that a program can check: layers, sizes, words that must not appear.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What each module may use, besides itself. Arrows of the design point down only.
const MAY_USE: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("error", &[]),
    ("size", &["error"]),
    ("clock", &[]),
    ("mutant", &[]),
    ("cipher", &["mutant"]),
    ("sync", &[]),
    ("flight", &["sync"]),
    ("direct", &["sync"]),
    ("store", &["error", "units", "mutant", "cipher", "direct"]),
    ("format", &["units", "store", "mutant"]),
    ("seal", &["error", "store", "format", "mutant", "cipher"]),
    ("spread", &["error", "units", "store", "format"]),
    ("mirror", &["units", "mutant", "store", "format", "spread"]),
    ("image", &["error", "sync"]),
    ("device", &["units"]),
    ("bench", &["units", "device", "store"]),
    ("map", &["units", "format"]),
    ("cache", &["units", "error", "sync", "direct", "format", "cipher"]),
    ("log", &["units", "error", "clock", "flight", "mutant", "store", "format"]),
    ("journal", &["units", "error", "direct", "format", "mutant", "cipher"]),
    ("gc", &["units", "format"]),
    (
        "volume",
        &[
            "units", "error", "clock", "mutant", "sync", "flight", "store", "format", "image",
            "device", "map", "cache", "log", "journal", "gc", "cipher",
        ],
    ),
    ("requests", &["units", "error", "clock", "mutant", "store", "format", "volume"]),
    ("frontend", &["units", "error", "device"]),
    ("host", &["error", "format", "clock"]),
    ("settings", &["error", "units", "store"]),
    (
        "pool",
        &[
            "units", "error", "clock", "mutant", "store", "format", "seal", "spread", "mirror",
            "volume", "host",
        ],
    ),
    (
        "transfer",
        &[
            "units", "error", "size", "sync", "store", "format", "device", "volume", "frontend",
            "pool",
        ],
    ),
    ("replica", &["units", "error", "clock", "mutant", "store", "format", "log", "volume"]),
    ("doctor", &["units", "error", "clock", "store", "format", "map", "log", "volume", "pool"]),
    (
        "daemon",
        &[
            "units", "error", "clock", "store", "format", "seal", "image", "device", "cache",
            "journal", "volume", "frontend", "host", "settings", "pool", "requests",
        ],
    ),
    (
        "cli",
        &[
            "units", "error", "clock", "store", "format", "seal", "image", "device", "cache",
            "volume", "frontend", "host", "settings", "pool", "doctor", "daemon", "bench", "size",
            "transfer", "replica", "requests",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Lines a file may have.
const SOURCE_LINES: usize = 500;
const TEST_LINES: usize = 800;

/// Files that are longer, with their length: it may shrink, never grow.
const LONG: &[(&str, usize)] = &[];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        let wanted = |e: &std::ffi::OsStr| extensions.contains(&e.to_str().unwrap_or(""));
        if path.is_dir() {
            files(&path, extensions, found);
        } else if path.extension().is_some_and(wanted) {
            found.push(path);
        }
    }
}

fn sources(dirs: &[&str], extensions: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    dirs.iter().for_each(|dir| files(&root().join(dir), extensions, &mut found));
    found.sort();
    let name = |p: &Path| p.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

/// The top-level module that a file of `src` belongs to.
fn module(file: &str) -> &str {
    let rest = file.strip_prefix("src/").unwrap();
    rest.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Code without line comments and without what follows `#[cfg(test)]`.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    let line = |l: &str| l.split("//").next().unwrap().to_owned();
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn used_modules(code: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let after = |(at, what): (usize, &str)| -> Vec<String> {
        let rest = &code[at + what.len()..];
        match rest.strip_prefix('{') {
            // `use crate::{a::X, b::Y}`: the first word of each branch.
            Some(list) => {
                let list = list.split(';').next().unwrap();
                let branch = |b: &str| b.trim().chars().take_while(|c| is_word(*c)).collect();
                list.split(',').map(branch).collect()
            }
            None => vec![rest.chars().take_while(|c| is_word(*c)).collect()],
        }
    };
    code.match_indices("crate::").flat_map(after).filter(|m: &String| !m.is_empty()).collect()
}

#[test]
fn layers_point_down() {
    let may_use: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in sources(&["src"], &["rs"]) {
        let module = module(&file);
        let Some(allowed) = may_use.get(module) else {
            wrong.push(format!("{file}: module `{module}` has no place in the layers"));
            continue;
        };
        for used in used_modules(&code(&text)) {
            let known = may_use.contains_key(used.as_str());
            if known && used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{file}: `{module}` may not use `{used}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    let long: BTreeMap<_, _> = LONG.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in sources(&["src", "tests", "examples", "scripts"], &["rs", "sh", "py"]) {
        let lines = text.lines().count();
        let limit = if file.starts_with("src/") { SOURCE_LINES } else { TEST_LINES };
        match long.get(file.as_str()) {
            Some(known) if lines > *known => wrong.push(format!("{file} grew: {lines} > {known}")),
            Some(known) if lines < *known => {
                wrong.push(format!("{file} shrank to {lines}: lower its limit in LONG"));
            }
            None if lines > limit => wrong.push(format!("{file} has {lines} lines (> {limit})")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The README's table of failures names the tests that show it.
#[test]
fn failures_are_shown_by_tests_that_exist() {
    let page = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = page.split("## When things fail").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    let shown: Vec<&str> =
        rows.map(|row| row.trim_end_matches('|').rsplit('|').next().unwrap()).collect();
    let names: Vec<&str> =
        shown.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(shown.len() > 15 && names.len() > shown.len(), "{shown:?}");
    let tests: Vec<String> =
        sources(&["tests"], &["rs"]).into_iter().map(|(_, text)| text).collect();
    let exists = |name: &str| {
        let begin = format!("fn {name}() {{");
        let is_test = |text: &String| {
            let at = text.find(&begin)?;
            let before = text[..at].rsplit("\n\n").next()?;
            (before.contains("#[test]") || before.contains("#[tokio::test")).then_some(())
        };
        tests.iter().any(|text| is_test(text).is_some())
    };
    let missing: Vec<&&str> = names.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "README.md names tests that do not exist: {missing:?}");
}

#[test]
fn no_loose_ends() {
    // Split, so that this file does not contain them.
    let banned = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("db", "g!("),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("XX", "X"),
        concat!("#[ig", "nore"),
    ];
    let mut wrong = Vec::new();
    for (file, text) in sources(&["src", "tests", "examples", "scripts"], &["rs", "sh", "py"]) {
        for word in banned {
            // `mktemp` wants its template of that letter.
            let template = word.starts_with('X') && !file.ends_with(".rs");
            if text.contains(word) && !template {
                wrong.push(format!("{file}: {word}"));
            }
        }
        if file.starts_with("src/") && code(&text).contains(".unwrap()") {
            wrong.push(format!("{file}: unwrap outside tests"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_says_why_it_is_safe() {
    let mut wrong = Vec::new();
    for (file, text) in sources(&["src", "examples"], &["rs"]) {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let starts = ["unsafe {", "unsafe impl"].iter().any(|what| line.contains(what));
            let explained = (at.saturating_sub(6)..=at).any(|i| lines[i].contains("SAFETY"));
            if starts && !explained {
                wrong.push(format!("{file}:{}: unsafe without SAFETY", at + 1));
            }
            let places = ["src/frontend/", "src/direct/", "src/main.rs", "examples/"];
            if starts && !places.iter().any(|place| file.starts_with(place)) {
                wrong.push(format!("{file}:{}: unsafe code where none is needed", at + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_top_level_is_the_agreed_one() {
    let agreed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "tests",
        "scripts",
        "examples",
        "Makefile",
        "README.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "target",
    ];
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with('.') || agreed.contains(&&*name) || name.ends_with(".toml"),
            "{name}"
        );
    }
}
