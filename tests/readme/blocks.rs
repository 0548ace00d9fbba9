//! The code blocks of README.md, as scripts.

use std::path::Path;

/// A file of the repository.
pub fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The texts of the blocks with one of these info strings, in order.
pub fn blocks(infos: &[&str]) -> Vec<String> {
    let text = file("README.md");
    let mut parts = text.split("\n```");
    parts.next();
    let mut found = Vec::new();
    // Behind each opening fence comes the block, behind each closing one what lies between two.
    while let (Some(block), Some(_)) = (parts.next(), parts.next()) {
        let (info, body) = block.split_once('\n').expect("a block has a body");
        if infos.contains(&info) {
            found.push(format!("{body}\n"));
        }
    }
    assert!(!found.is_empty(), "README.md has no block {infos:?}");
    found
}

/// These blocks as one bash script that ends at the first command that fails. What a user has to
/// put in for himself is replaced: the bucket's name and the endpoint.
pub fn script(infos: &[&str], bucket: &str, endpoint: &str) -> String {
    let mut script = blocks(infos).concat();
    for (example, real) in [("my-bucket", bucket), ("https://s3.example.org", endpoint)] {
        assert!(script.contains(example), "README.md does not say {example}");
        script = script.replace(example, real);
    }
    // Another way to the same server.
    script = script.replace("https://rgw2.example.org", &format!("{endpoint}/"));
    let commands = script.lines().filter(|line| !line.starts_with("make "));
    let commands: Vec<&str> = commands.collect();
    format!("PS4='+ $SECONDS s: '\nset -euxo pipefail\n{}\n", commands.join("\n"))
}
