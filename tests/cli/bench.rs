//! `objblk bench`: figures of loads, and what they leave behind.

use crate::program::Home;
use serde_json::Value;

const USAGE: i32 = 2;

fn home() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    home
}

fn load(home: &Home, args: &[&str]) -> Value {
    let all = [&["bench", "data", "--time", "500ms", "--yes", "--json"], args].concat();
    home.run(&all).json()
}

#[test]
fn loads_on_a_volume_have_figures_and_leave_it_free() {
    let home = home();
    let writes = load(&home, &["--io-type", "write", "--flush-every", "64"]);
    let figures = &writes["load"];
    let of = |what: &str| figures[what].as_u64().unwrap();
    assert!(of("operations") > 0 && of("bytes") == of("operations") * 4096, "{figures}");
    assert!(of("p50_us") <= of("p99_us") && of("p99_us") <= of("max_us"), "{figures}");
    let asked = writes["store_requests"].as_array().unwrap();
    let puts = asked.iter().find(|each| each[0] == "put").expect("something was stored");
    assert!(puts[1].as_u64().unwrap() > 0);
    for args in
        [&["--io-pattern", "seq", "--io-size", "1M", "--depth", "4"][..], &["--io-type", "rw"]]
    {
        assert!(load(&home, args)["load"]["operations"].as_u64().unwrap() > 0);
    }
    let used = home.run(&["info", "data", "--json"]).json();
    assert!(used["used"].as_u64().unwrap() > 0, "{used}");
    let text = home.run(&["bench", "data", "--time", "100ms"]).ok();
    assert!(text.starts_with("WORK") && text.contains("random reads"), "{text}");
}

#[test]
fn a_load_on_the_bare_store_leaves_nothing() {
    let home = home();
    let before = home.objects();
    let args = ["bench", "--store-only", "--io-size", "64K", "--depth", "4", "--time", "300ms"];
    let figures = home.run(&[&args[..], &["--json"]].concat()).json();
    let works: Vec<_> = figures["load"].as_array().unwrap().iter().map(|f| &f["work"]).collect();
    assert_eq!(works, ["creates", "reads", "deletes of up to 1000"]);
    assert!(figures["load"][0]["operations"].as_u64().unwrap() > 0);
    assert_eq!(home.objects(), before);
}

#[test]
fn loads_that_cannot_be_are_refused() {
    let home = home();
    for (args, words) in [
        (&["bench"][..], "<NAME>"),
        (&["bench", "data", "--store-only"], "cannot be used with"),
        (&["bench", "data", "--io-type", "write"], "this overwrites what is in data needs a conf"),
        (&["bench", "data", "--io-size", "1000"], "in sectors of 512 bytes"),
        (&["bench", "data", "--io-size", "1G"], "--io-size is from 1 byte to 64 MiB"),
        (&["bench", "data", "--depth", "0"], "--depth is from 1 to 1024"),
        (&["bench", "data", "--time", "soon"], "--time"),
    ] {
        home.run(args).refuses(USAGE, words);
    }
    home.run(&["bench", "none"]).refuses(3, "there is no volume called none");
    let server = home.serve(&["data"]);
    home.run(&["bench", "data"]).refuses(5, "data");
    drop(server);
}
