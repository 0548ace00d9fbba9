//! Where the corpora begin: the golden objects, and well-formed inputs of everything else.

use std::path::PathBuf;

type Seed = (&'static str, String, Vec<u8>);

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    if !name.ends_with(".hex") {
        return bytes;
    }
    let digits: Vec<u8> =
        bytes.iter().filter_map(|b| char::from(*b).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

/// Every seed: its target, its file, its bytes.
pub fn all() -> Vec<Seed> {
    let mut seeds = objects();
    seeds.extend(texts());
    let mut add = |target, name: &str, bytes| seeds.push((target, name.to_owned(), bytes));
    for (name, bytes) in handshakes() {
        add("nbd_handshake", name, bytes);
    }
    for (name, how) in [("offered", 0), ("required", 1)] {
        add("nbd_tls", name, [vec![how], secured()].concat());
    }
    for (name, how) in [("simple", 0), ("structured", 1)] {
        add("nbd_transmission", name, [vec![how], requests()].concat());
    }
    seeds
}

fn journal() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let batch = golden("journal-batch-v1.hex");
    vec![
        ("journal", "superblock", golden("journal-superblock-v1.hex")),
        ("journal", "segment", golden("journal-segment-v1.hex")),
        ("journal", "entries", batch[96..].to_vec()),
        ("journal", "batch", batch),
        ("journal", "sealed-segment", golden("journal-segment-v2.hex")),
        ("journal", "sealed-batch", golden("journal-batch-v2.hex")),
        ("journal", "mirror", golden("mirror-segment-v2.hex")),
        ("journal", "mirror-with-end", golden("mirror-segment-v4.hex")),
        ("journal", "sealed-mirror", golden("mirror-segment-v3.hex")),
        ("journal", "sealed-mirror-with-end", golden("mirror-segment-v5.hex")),
    ]
}

fn objects() -> Vec<Seed> {
    let chunk = golden("chunk-v1.hex");
    let map = golden("map-object-v1.hex");
    let count = u32::from_le_bytes(chunk[64..68].try_into().unwrap()) as usize;
    let frames = u32::from_le_bytes(chunk[68..72].try_into().unwrap()) as usize;
    assert_eq!(count, 7, "the golden chunk has one record of each kind");
    let records = [&chunk[72..76], &chunk[80..chunk.len() - 4 - 8 * frames]].concat();
    let mut seeds = vec![
        ("chunk", "golden", chunk),
        ("chunk", "golden-lz4", golden("chunk-lz4-v1.hex")),
        ("chunk", "golden-zstd", golden("chunk-zstd-v1.hex")),
        ("record", "golden", records),
        ("fence", "golden", golden("fence-v1.hex")),
        ("checkpoint", "golden", golden("checkpoint-v1.hex")),
        ("snapshot", "golden", golden("snapshot-v1.hex")),
        ("checkpoint", "golden-snapshots", golden("checkpoint-snapshots-v1.hex")),
        ("checkpoint", "golden-past", golden("checkpoint-past-v2.hex")),
        ("profile", "golden", golden("profile-v1.hex")),
    ];
    // Three items: a leaf, a map page and a chunk page.
    let directory = map.len() - 16 - 3 * 20;
    for (index, name) in ["leaf", "map_page", "chunk_page"].into_iter().enumerate() {
        let entry = &map[directory + index * 20..][..20];
        let number = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap()) as usize;
        seeds.push(("page", name, map[number(4)..number(4) + number(16)].to_vec()));
    }
    seeds.push(("map_object", "golden", map));
    seeds.extend(journal());
    seeds.extend([
        ("cache", "head", golden("cache-head-v1.hex")),
        ("cache", "entry", golden("cache-entry-v1.hex")),
        ("cache", "sealed-entry", golden("cache-entry-sealed-v1.hex")),
        ("stream", "golden", golden("stream-v1.hex")),
        ("sealed", "golden", golden("sealed-v1.hex")),
    ]);
    for name in [
        "pool",
        "volume",
        "epoch",
        "name",
        "tombstone",
        "import",
        "received",
        "replica",
        "trash-entry",
        "schedule",
        "scrub",
        "key-slots",
        "key-slots-v2",
        "volume-signed",
        "stores",
        "store",
        "placement",
        "mirror-state",
        "request",
        "decision",
        "decision-withdrawn",
        "decision-passed-over",
        "answer",
    ] {
        seeds.push(("json", name, golden(&format!("{name}.json"))));
    }
    seeds.into_iter().map(|(target, name, bytes)| (target, name.to_owned(), bytes)).collect()
}

fn texts() -> Vec<Seed> {
    const ID: &str = "07070707-0707-0707-0707-070707070707";
    let control = [
        r#"{"version":1,"message":"ping"}"#.to_owned(),
        r#"{"version":1,"message":{"detach":{"force":true}}}"#.to_owned(),
        format!(r#"{{"version":1,"message":{{"grow":{{"volume":"{ID}","size":4096}}}}}}"#),
        format!(
            r#"{{"version":1,"message":{{"mend":{{"volume":"{ID}","objects":["volumes/{ID}/log/00/0-1"]}}}}}}"#
        ),
        r#"{"version":1,"message":{"mended":[{"object":"a","how":"put-back","moved_bytes":0,"lost_bytes":4096}]}}"#.to_owned(),
        r#"{"version":1,"message":{"progress":{"phase":"flushing","dirty_bytes":4096}}}"#.to_owned(),
        r#"{"version":1,"message":{"refused":{"kind":"busy","message":"no"}}}"#.to_owned(),
        format!(
            r#"{{"version":1,"message":{{"status":{{"phase":"attached","volumes":[{{"name":"data","id":"{ID}","device":"/dev/ublkb0","size":4096,"epoch":1,"read_only":false,"dirty_bytes":0,"failure":null,"cache_hits":1,"cache_misses":2,"cache_bytes":3,"frontend":{{"a":[1,2.5,null]}}}}],"store":{{}}}}}}}}"#
        ),
        r#"{"version":1,"message":{"location":{"url":"file:///srv","endpoint_url":null,"region":null},"volumes":["data"],"read_only":false,"takeover":true,"cache_bytes":1,"door":{"ublk":{"queues":1,"depth":64}}}}"#.to_owned(),
        format!(
            r#"{{"version":1,"pid":1,"pid_start":2,"boot":"b","since_ms":3,"store":"file:///srv","frontend":"nbd","dev_id":null,"volumes":[{{"id":"{ID}","name":"data","device":"nbd+unix:///data?socket=/s","link":null,"read_only":true}}]}}"#
        ),
        r#"{"version":1,"message":{"paths":{"change":{"add":"http://a,priority=2,interface=eth0"}}}}"#.to_owned(),
        r#"{"version":1,"message":{"paths":{"change":{"select":"queue-length"}}}}"#.to_owned(),
        r#"{"version":1,"message":{"paths":{"selector":"round-robin","failback":"30","no_path_retry":"queue","group":1,"paths":[{"id":1,"name":"http://a","priority":1,"weight":1,"state":"marginal","for_ms":5,"in_use":true,"requests":9,"in_flight":1,"cancelled":0,"errors":{"unavailable":2},"bytes":4096,"average_us":[100,null],"p50_us":64,"p99_us":null,"latency":{"sum_us":900,"log2_us":[0,9]},"last_error":"no answer"}]}}}"#.to_owned(),
        r#"{"version":1,"message":{"location":{"url":"file:///srv","endpoint_url":["http://a","http://b"],"region":null,"paths":{"failback":"manual"}},"volumes":["data"],"read_only":false,"takeover":true,"cache_bytes":1,"door":{"ublk":{"queues":1,"depth":64}}}}"#.to_owned(),
        format!(r#"{{"version":1,"message":{{"retain":{{"volume":"{ID}","time_ms":86400000}}}}}}"#),
    ];
    let settings = [
        "store = 's3://disks/pool'\nregion = 'eu-1'\n".to_owned(),
        "# a comment\nbucket = \"disks\"\nprefix = \"a/b\"\nendpoint-url = \"\"\"\nhttp://[::1]:7480\"\"\"\n".to_owned(),
        "[table]\nkey = [1, 2.5, true, 1979-05-27T07:32:00Z, { a = 'b' }]\n".to_owned(),
        "endpoint-url = ['http://a', 'http://b,weight=2']\nno-path-retry = 5\npath-selector = 'queue-length'\n".to_owned(),
    ];
    let names = [
        "data-1.img",
        ID,
        "00000000000000ff",
        "ffffffffffffff00-0000000000000003",
        "0000000000000001-00000002-answer",
    ];
    let sizes = ["512", "64k", "10GiB", "2tb", "16383P", "1.5G"];
    let urls = ["s3://my-bucket/a/b", "file:///srv/x y//", "mem://", "s3://10.0.0.1/"];
    let mut seeds = Vec::new();
    let mut add = |target: &'static str, texts: &[&str]| {
        for (index, text) in texts.iter().enumerate() {
            seeds.push((target, format!("seed{index}"), text.as_bytes().to_vec()));
        }
    };
    add("control", &control.each_ref().map(String::as_str));
    add("settings", &settings.each_ref().map(String::as_str));
    add("names", &names);
    add("size", &sizes);
    add("store_url", &urls);
    add("image", &[ANSWERS, "# Disk DescriptorFile\n"]);
    seeds.push(("image", "qcow2".to_owned(), qcow2()));
    seeds
}

/// What comes before an image that was moved.
const ANSWERS: &str = "HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\nHTTP/2 206 \r\ncontent-range: bytes 16-31/1000\r\n\
                       ETag: \"x\"\r\ncontent-length: 16\r\n\r\n0123456789abcdef";

/// The header of an image of 1 GiB, version 3.
fn qcow2() -> Vec<u8> {
    let mut head = vec![0; 112];
    head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    head[23] = 16;
    head[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
    head
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &number.to_be_bytes()[..], &len, data].concat()
}

fn handshakes() -> Vec<(&'static str, Vec<u8>)> {
    let flags = vec![0, 0, 0, 3];
    let context = b"\0\0\0\x01a\0\0\0\x01\0\0\0\x0fbase:allocation";
    let info = b"\0\0\0\x01a\0\x03\0\x01\0\x02\0\x03";
    let all = [
        flags.clone(),
        option(3, b""),
        option(5, b""),
        option(6, info),
        option(9, b"\0\0\0\x01a\0\0\0\0"),
        option(8, b""),
        option(9, b"\0\0\0\x01b\0\0\0\x01\0\0\0\x05base:"),
        option(10, context),
        option(7, info),
        requests(),
    ];
    let old = [vec![0, 0, 0, 1], option(1, b"b"), requests()];
    let abort = [flags, option(99, b"unknown"), option(2, b"")];
    vec![("all", all.concat()), ("export_name", old.concat()), ("abort", abort.concat())]
}

/// A client that asks in the clear, then begins TLS with the smallest ClientHello there is.
fn secured() -> Vec<u8> {
    let with_len = |body: &[u8]| [&(body.len() as u16).to_be_bytes()[..], body].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_len(body)].concat();
    let share = [&[0, 29][..], &with_len(&[9; 32])].concat();
    let extensions = [
        extension(43, &[2, 3, 4]),
        extension(10, &with_len(&[0, 29])),
        extension(13, &with_len(&[4, 3])),
        extension(51, &with_len(&share)),
    ];
    let hello = [
        &[3, 3][..],
        &[0x5a; 32],
        &[0],
        &with_len(&[0x13, 1]),
        &[1, 0],
        &with_len(&extensions.concat()),
    ];
    let handshake = [&[1, 0][..], &with_len(&hello.concat())].concat();
    let record = [&[22, 3, 1][..], &with_len(&handshake)].concat();
    [vec![0, 0, 0, 3], option(3, b""), option(8, b""), option(5, b""), record].concat()
}

fn request(kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u64::from(kind).to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Each command once and more, on a disk of 64 KiB.
fn requests() -> Vec<u8> {
    [
        request(1, 0, 512, 1024, &[7; 1024]),
        request(0, 0, 0, 2048, b""),
        request(0, 0, 0, 65536, b""),
        request(7, 0, 0, 65536, b""),
        request(4, 0, 512, 512, b""),
        request(6, 2, 1024, 512, b""),
        request(5, 0, 0, 4096, b""),
        request(3, 0, 0, 0, b""),
        request(0, 0, 65536, 512, b""),
        request(2, 0, 0, 0, b""),
    ]
    .concat()
}
