//! The pages in a real browser: Chromium, without a head, with axe-core, which checks them for accessibility. Ignored unless
//! asked for, since it needs these: `cargo test --test page -- --ignored`. Pictures of all states, for people to look at, are
//! then in target/pages.

#[path = "../common/mod.rs"]
mod common;

mod browser;
mod runs;

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use browser::Tab;
use common::{ECHOLOOP, Server, echoloop, noise, ping};
use runs::{run, steady};
use rustix::process::Signal;
use serde_json::{Value, json};

/// In a report: its charts that are shown, with what is in them, and tables and texts that are cut off.
const CHARTS: &str =
    "[...document.querySelectorAll('figure div svg')].filter(svg => svg.getClientRects().length).map(svg => ({
    label: svg.getAttribute('aria-label'),
    width: svg.getBoundingClientRect().width,
    lines: [...svg.querySelectorAll('polyline')].filter(line => {
        const box = line.getBBox();
        return line.points.length > 1 && box.width + box.height > 20;
    }).length,
    text: Math.min(...[...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect().height)),
    cut: [...svg.querySelectorAll('text')].filter(text => {
        const [box, room] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
        return box.left < room.left - 1 || box.right > room.right + 1 || box.bottom > room.bottom + 1;
    }).map(text => text.textContent),
}))";

/// Reports, and the browser that shows them.
struct Reports {
    tab: Tab,
    directory: tempfile::TempDir,
}

impl Reports {
    fn new() -> Self {
        Reports { tab: Tab::open("about:blank"), directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A run of `bench`, with its page.
    fn bench(&self, name: &str, address: &str, flags: &str) -> Value {
        let (json, html) = (self.path(&format!("{name}.json")), self.path(&format!("{name}.html")));
        let mut args = vec!["bench", address, "-q", "--warm-up", "0s", "--json", &json, "--html", &html];
        args.extend(flags.split(' '));
        let output = echoloop(&args, b"");
        assert!(matches!(output.status.code(), Some(0 | 1 | 3)), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap()
    }

    /// The page of these runs.
    fn report(&self, name: &str, runs: &[Value], flags: &[&str]) {
        let mut args = vec!["report".to_owned(), "--html".to_owned(), self.path(&format!("{name}.html"))];
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        for (number, run) in runs.iter().enumerate() {
            let path = self.path(&format!("{name}-{number}.json"));
            fs::write(&path, run.to_string()).unwrap();
            args.push(path);
        }
        let output = echoloop(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Looks at a page: every chart is there, with so many lines, can be read, and nothing is asked of anybody.
    #[track_caller]
    fn look(&mut self, name: &str, lines: &[u64]) {
        let url = format!("file://{}", self.path(&format!("{name}.html")));
        self.tab.go(&url);
        for width in [1280, 390] {
            self.tab.width(width);
            let charts = self.tab.ask(CHARTS);
            let charts = charts.as_array().unwrap();
            let found: Vec<_> = charts.iter().map(|chart| chart["lines"].as_u64().unwrap()).collect();
            assert_eq!(found, lines, "{name}, {width} pixels: {charts:#?}");
            for chart in charts {
                // On a desk lines of text, and charts with them, are no longer than can be read.
                assert!(chart["width"].as_f64().unwrap() > 0.75 * f64::from(width.min(960)), "{name}: {chart}");
                assert!(chart["text"].as_f64().unwrap() >= 9.0, "{name}: its text is too small: {chart}");
                assert_eq!(chart["cut"], json!([]), "{name}, {width} pixels: {chart}");
            }
        }
        let squeezed = "[...document.querySelectorAll('th[scope=row]')]
            .filter(head => head.clientWidth && head.clientWidth < Math.min(60, 12 * head.textContent.length))
            .map(head => head.textContent)";
        assert_eq!(self.tab.ask(squeezed), json!([]), "{name}: names of rows have room on a phone");
        self.tab.look(name);
        assert_eq!((&self.tab.requests, &self.tab.complaints), (&Vec::new(), &Vec::new()), "{name}");
    }
}

#[test]
#[ignore = "needs Chromium and axe-core"]
fn reports_show_what_came_of_runs() {
    let mut reports = Reports::new();
    let server = Server::start(&[]);
    let address = server.addr().to_string();
    // Throughput, latency over time, the heat map, percentiles, the histogram: bars and cells are no lines.
    reports.bench("closed", &address, "-c 10 -t 3s");
    reports.look("closed", &[1, 4, 0, 1, 0]);
    reports.bench("open", &address, "-c 10 -t 3s -r 5000");
    reports.look("open", &[1, 4, 0, 2, 0]);
    reports.bench("search", &address, "-c 10 --find-rate p99<1s --rate 100000 -t 1500ms");
    reports.look("search", &[1, 4, 0, 2, 0, 2]);

    let lossy = Server::start_on(&["udp:127.0.0.1:0"], &["--fault", "drop=0.05", "--fault", "swap=0.05"]);
    reports.bench("datagrams", &lossy.endpoints[0], "-c 10 -t 3s -r 500 --timeout 300ms");
    reports.look("datagrams", &[1, 4, 0, 2, 0]);

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    reports.bench("unanswered", &address, "-c 3 -t 1s --timeout 300ms --fail-if p99>2ms --fail-if errors>0");
    reports.look("unanswered", &[0, 0, 1, 0, 0]);
}

#[test]
#[ignore = "needs Chromium and axe-core"]
fn reports_show_runs_that_went_wrong() {
    let mut reports = Reports::new();
    let server = Server::start(&[]);
    let address = server.addr().to_string();
    let closed = &reports.bench("closed", &address, "-c 10 -t 100ms");
    let open = &reports.bench("open", &address, "-c 10 -t 100ms -r 2000");

    // Without a reply there is nothing to draw, and a line that went on would be a lie.
    let mut seconds = steady(20, 80_000, 120.0);
    for second in [5, 6, 12] {
        seconds[second].replies = 0;
    }
    reports.report("stalled", &[run(closed, "a server that stands still", &seconds)], &[]);
    reports.look("stalled", &[1, 12, 0, 1, 0]);

    // An hour has more points than pixels.
    let mut seconds = steady(3600, 50_000, 200.0);
    seconds[1234].median = 90_000.0;
    for second in &mut seconds[2000..2060] {
        second.replies = 0;
    }
    for second in &mut seconds[3000..3100] {
        second.errors = 3;
    }
    let hour = run(open, "an hour", &seconds);
    reports.report("hour", std::slice::from_ref(&hour), &[]);
    reports.look("hour", &[1, 8, 0, 2, 0, 1]);

    let mut cut = run(open, "interrupted", &steady(4, 2000, 300.0));
    cut["interrupted"] = json!(true);
    cut["cut"] = json!("interrupted");
    cut["config"]["duration"] = json!(60.0);
    reports.report("interrupted", &[cut.clone()], &[]);
    reports.look("interrupted", &[1, 4, 0, 2, 0]);

    let mut bad = run(open, "everything goes wrong", &steady(10, 1000, 3000.0));
    bad["config"]["rate"] = json!(5000.0);
    bad["rate_kept"] = json!({ "kept": false, "limit": "generator",
        "text": "the rate was not kept: 996 of 5,000 messages/s were answered in time; the limit was the generator" });
    bad["generator"]["warnings"] = json!([
        "the generator used 99.3 % of a processor: it may have been the limit, and not the server",
        "the schedule slipped: 15.3 % of the messages left more than 1.00 ms after they were due, with their connections \
            free. Share the load among several processes, and add up what they report (echoloop report --merge)",
        "the generator itself stood still for up to 21.3 ms, which can explain p90, p99, p99.9, p99.99 and max",
        "37 connections could not be opened: the limit on open files is 64",
    ]);
    bad["errors"] = json!([
        { "kind": "reset", "count": 1_234_567, "first": "127.0.0.1:7777: connection reset by peer (os error 104)" },
        { "kind": "mismatch", "count": 1, "first": format!("connection 7, byte 1024: {}", "0123456789abcdef".repeat(9)) },
        { "kind": "reply_timeout", "count": 17, "first": "connection 3: no reply within 5.00 s" },
    ]);
    bad["criteria"] = json!([
        { "criterion": "p99>2ms", "holds": true, "figure": "p99 is 24.1 ms" },
        { "criterion": "errors>0", "holds": true, "figure": "1,234,585 errors" },
        { "criterion": "rate<500", "holds": false, "figure": "996/s" },
    ]);
    bad["outcomes"] = json!({ "due": 50_000, "answered": 10_000, "answered_late": 1, "unanswered": 17, "failed": 2,
        "never_sent": { "connection_gone": 5, "generator_behind": 39_000, "end_reached": 975 } });
    reports.report("bad", &[bad.clone()], &[]);
    reports.look("bad", &[1, 4, 0, 2, 0]);

    // What a file says is shown as what it is: no markup, no script, no character that nobody sees or that turns text.
    let mut hostile = run(closed, "<script>parent.x=1</script>\u{202e}gnp.\u{200b}\u{1b}[31m", &steady(4, 1000, 90.0));
    hostile["addresses"] = json!(["</style><img src=http://192.0.2.1/x onerror=alert(1)>"]);
    hostile["host"]["name"] = json!("\u{2066}\u{e0041}\u{feff}");
    reports.report("hostile", &[hostile.clone(), cut.clone()], &[]);
    reports.look("hostile", &[2, 2, 3, 2, 0, 0]);
    let text = reports.tab.ask("document.body.textContent + document.title");
    let text = text.as_str().unwrap();
    assert!(text.contains("<script>parent.x=1</script>\\u{202e}gnp.\\u{200b}\\u{1b}[31m"), "{text}");
    assert!(!text.contains(['\u{202e}', '\u{200b}', '\u{1b}', '\u{2066}', '\u{e0041}', '\u{feff}']));

    // Runs side by side: their names, colours and troubles.
    let mut eight: Vec<_> = (0..8u32)
        .map(|number| {
            let name = format!("run {number}, with --depth {} and a name that is rather long", 1 << number);
            let seconds = steady(12 + number as usize, 9000 + 2000 * u64::from(number), 80.0 * f64::from(number + 1));
            run(if number < 4 { closed } else { open }, &name, &seconds)
        })
        .collect();
    eight[2] = cut;
    eight[5] = bad;
    reports.report("two", &eight[..2], &[]);
    reports.look("two", &[2, 2, 2, 2, 0, 0]);
    reports.report("four", &eight[..4], &[]);
    reports.look("four", &[4, 4, 5, 4, 0, 0, 0, 0]);
    reports.report("eight", &eight, &[]);
    reports.look("eight", &[8, 8, 13, 8, 0, 0, 0, 0, 0, 0, 0, 0]);

    let part = |number: u64| {
        let mut part = run(closed, &format!("generator {number}"), &steady(10, 5000 * number, 100.0));
        (part["measured_from"], part["measured_to"]) = (json!("2026-11-24T20:00:00Z"), json!("2026-11-24T20:00:10Z"));
        part
    };
    reports.report("merged", &[part(1), part(2), part(3)], &["--merge"]);
    reports.look("merged", &[1, 4, 0, 1, 0]);
}

#[test]
#[ignore = "needs Chromium and axe-core"]
fn reports_show_runs_of_every_kind() {
    let mut reports = Reports::new();
    let path = reports.path("echo.sock");
    let server = Server::start_on(&["127.0.0.1:0", &format!("unix:{path}")], &[]);
    let address = server.addr().to_string();
    reports.bench("unix", &format!("unix:{path}"), "-c 10 -t 2500ms -r 5000");
    reports.look("unix", &[1, 4, 0, 2, 0]);
    let one = &reports.bench("one-message", &address, "-c 1 -n 1 --fail-if p99>1s --fail-if errors>0");
    reports.look("one-message", &[0, 0, 0, 0]);
    let held = &reports.bench("criteria-held", &address, "-c 3 -t 1500ms --fail-if max>1h --fail-if errors>0");
    reports.look("criteria-held", &[1, 4, 0, 1, 0]);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = &format!("udp:{}", silent.local_addr().unwrap());
    let nobody = &reports.bench("silent", silent, "-c 3 -t 1s -r 100 --timeout 300ms --fail-if lost>0");
    reports.look("silent", &[0, 0, 2, 0]);
    let never = &reports.bench("search-fails", &address, "-c 10 --find-rate p99<1ns --rate 5000 -t 1s");
    reports.look("search-fails", &[0, 0, 2, 0, 2]);

    // Merged runs of several machines, and what is long or hostile side by side.
    let part = |number: u64, host: &str, addresses: &[&str]| {
        let mut part = run(held, &format!("generator {number}"), &steady(10, 5000 * number, 100.0));
        (part["measured_from"], part["measured_to"]) = (json!("2026-11-24T20:00:00Z"), json!("2026-11-24T20:00:10Z"));
        (part["host"]["name"], part["addresses"]) = (json!(host), json!(addresses));
        part
    };
    let parts = [
        part(1, "generator-1.example.com", &["192.0.2.10:7777"]),
        part(2, "generator-2.example.com", &["192.0.2.10:7777", "[2001:db8:1234:5678:9abc:def0:1234:5678]:7777"]),
        part(3, "ip-203-0-113-77.eu-central-1.compute.internal", &["[2001:db8::1]:7777"]),
    ];
    reports.report("three-machines", &parts, &["--merge"]);
    reports.look("three-machines", &[1, 4, 0, 1, 0]);
    let broken = "[...document.querySelectorAll('.scroll td')].filter(cell => {
        const range = document.createRange();
        return [...cell.childNodes].filter(node => node.nodeType === 3).some(node =>
            [...node.data.matchAll(/[^ ]*[0-9]:[0-9][^ ]*/g)].some(word => {
                range.setStart(node, word.index);
                range.setEnd(node, word.index + word[0].length);
                return word[0].length < 50 && range.getClientRects().length > 1;
            }));
    }).map(cell => cell.textContent)";
    reports.tab.width(390);
    assert_eq!(reports.tab.ask(broken), json!([]), "addresses and times are not broken");
    let hostile =
        ["<script>parent.x=1</script>", "\u{202e}desrever", "&amp;\"'><b>", &"a-name-without-any-space-".repeat(8)];
    let bases = [one, held, nobody, never];
    let eight: Vec<_> = (0..8)
        .map(|number| {
            let mut run = bases[number % 4].clone();
            run["name"] = json!(format!("{}{number}", hostile[number % 4]));
            run["id"] = json!(format!("{number:032x}"));
            run
        })
        .collect();
    reports.report("eight-hostile", &eight, &[]);
    reports.look("eight-hostile", &[2, 2, 10, 8, 4, 0, 0]);
}

#[test]
#[ignore = "needs Chromium and axe-core"]
fn values_are_at_the_pointer_and_by_keyboard() {
    let mut reports = Reports::new();
    let server = Server::start(&[]);
    reports.bench("values", &server.addr().to_string(), "-c 10 -t 2500ms -r 2000");
    let url = format!("file://{}", reports.path("values.html"));
    let tab = &mut reports.tab;
    tab.go(&url);
    let charts = tab.ask("document.querySelectorAll('figure .wide').length").as_u64().unwrap();
    assert_eq!(charts, 5);
    for chart in 0..charts {
        let figure = format!("document.querySelectorAll('figure')[{chart}]");
        let values = format!("[...{figure}.querySelectorAll('output')].map(value => value.textContent).join('|')");
        let told = format!("/^[<0-9][0-9.,]*( ms| us| s|\\/s| %)?(\\||$)/.test({values})");
        tab.ask(&format!("{figure}.querySelector('.wide').focus()"));
        for key in ["Home", "ArrowRight", "End"] {
            let before = tab.ask(&format!("{figure}.querySelector('.at').textContent"));
            tab.call("Input.dispatchKeyEvent", json!({ "type": "keyDown", "key": key, "code": key }));
            tab.call("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": key, "code": key }));
            assert_ne!(tab.ask(&format!("{figure}.querySelector('.at').textContent")), before, "{chart}: {key}");
            assert_eq!(tab.ask(&told), true, "{chart}: {key}: {}", tab.ask(&values));
        }
        tab.ask("document.activeElement.blur()");
        assert_eq!(tab.ask(&format!("{values}.replaceAll('|', '')")), "", "{chart}");
        tab.ask(&format!("{figure}.scrollIntoView({{ block: 'center' }})"));
        let place = tab.ask(&format!(
            "(() => {{ const box = {figure}.querySelector('.wide').getBoundingClientRect();
                return [box.left + box.width / 2, box.top + box.height / 2] }})()"
        ));
        tab.call("Input.dispatchMouseEvent", json!({ "type": "mouseMoved", "x": place[0], "y": place[1] }));
        assert_eq!(tab.ask(&told), true, "{chart}: {}", tab.ask(&values));
        if chart == 1 {
            tab.shoot("values");
        }
    }

    // Without a script all is there but that; on paper nothing is cut off.
    let shown = "[...document.querySelectorAll('figure div svg, .scroll, .pairs, .cards, summary')]
        .filter(element => element.getClientRects().length).length";
    let with_script = tab.ask(shown);
    tab.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    tab.go(&url);
    assert_eq!((tab.ask(shown), tab.ask("document.querySelectorAll('.plot').length")), (with_script, json!(0)));
    tab.call("Emulation.setEmulatedMedia", json!({ "media": "print" }));
    tab.width(700);
    let cut = tab.ask(
        "[...document.querySelectorAll('figure, .scroll, pre, .pairs')]
            .filter(element => element.scrollWidth > element.clientWidth + 1).map(element => element.outerHTML.slice(0, 80))",
    );
    assert_eq!(cut, json!([]));
    tab.print("report");
}

/// A load on a server, as long as it is looked at.
struct Load(Child);

impl Load {
    fn on(address: &str, flags: &str) -> Load {
        let mut command = Command::new(ECHOLOOP);
        command.args(["bench", address, "-q", "-t", "10m"]).args(flags.split(' '));
        Load(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(id: &str, is: &str) -> String {
    format!("document.getElementById('{id}').textContent === '{is}'")
}

#[test]
#[ignore = "needs Chromium and axe-core"]
fn the_live_page_shows_what_servers_do() {
    let mut tab = Tab::open("about:blank");
    // So many connections look like so many; of very many, each cell stands for several.
    for (name, all, load) in [
        ("one", "1", "-c 1 -r 20"),
        ("three-hundred", "300", "-c 60 --idle 240 -r 600"),
        ("five-thousand", "5,000", "-c 200 --idle 4800 -r 2000"),
    ] {
        let mut server = Server::start_on(&["127.0.0.1:0"], &["--http", "0"]);
        let origin = format!("http://{}/", server.inside());
        let _load = Load::on(&server.addr().to_string(), load);
        tab.go(&origin);
        tab.wait_for(&text("connections", all));
        tab.wait_for("Number(document.getElementById('a').textContent) > 0 && samples.length > 5");
        let counted = tab.ask(
            "['i', 'a', 'w', 'c'].map(id => Number(document.getElementById(id).textContent.replaceAll(',', '')))
                .reduce((sum, count) => sum + count)",
        );
        assert_eq!(counted.to_string(), all.replace(',', ""), "the legend counts connections");
        let cells = "document.querySelectorAll('#cells i:not([class=\"\"])').length";
        match name {
            "five-thousand" => tab.wait_for("document.getElementById('per-cell').textContent.includes('stands for ')"),
            _ => tab.wait_for(&format!("{cells} === {all}")),
        }
        tab.look(name);
        // Before its server goes, for it would complain that nobody answers.
        tab.go("about:blank");
    }

    let mut server =
        Server::start_on(&["udp:127.0.0.1:0", "127.0.0.1:0"], &["--http", "0", "--datagram-rate", "300", "--print"]);
    let origin = format!("http://{}/", server.inside());
    let load = Load::on(&server.endpoints[0], "-c 4 -r 500 --timeout 200ms");
    tab.go(&origin);
    tab.wait_for("samples.some(sample => sample.came > 0 && sample.answered < sample.came)");
    tab.wait_for("samples.length > 5");
    tab.look("datagrams-live");
    drop(load);

    // Where there are only datagrams, nothing is said of connections.
    let mut server = Server::start_on(&["udp:127.0.0.1:0"], &["--http", "0"]);
    let load = Load::on(&server.endpoints[0], "-c 4 -r 500");
    tab.go(&format!("http://{}/", server.inside()));
    tab.wait_for("samples.length > 5 && samples.some(sample => sample.answered > 0)");
    tab.wait_for("document.querySelectorAll('.streams:not([hidden])').length === 0");
    tab.look("datagrams-alone");
    drop(load);

    // At the limit, and with faults.
    let flags = ["--http", "0", "--max-connections", "3", "--fault", "delay=5ms", "--fault", "chunk=1..20"];
    let mut server = Server::start(&flags);
    let origin = format!("http://{}/", server.inside());
    let load = Load::on(&server.addr().to_string(), "-c 3 -r 100");
    tab.go(&origin);
    tab.wait_for(&text("connections", "3"));
    let _waiting: Vec<_> = (0..4).map(|_| server.connect()).collect();
    tab.wait_for(&text("limit", "of at most 3"));
    tab.wait_for("document.getElementById('note').innerText.includes('limit')");
    tab.wait_for("[...document.querySelectorAll('#faults td')].some(cell => Number(cell.textContent) > 0)");
    tab.wait_for("samples.length > 5");
    tab.look("limit");
    drop(load);

    // At the limit on open files, of which the page has its share; and where it was lowered while the page was open.
    let mut server = Server::start_limited(64, "--max-connections 1000 --http 0");
    tab.go(&format!("http://{}/", server.inside()));
    let peers: Vec<_> = (0..80).map(|_| server.connect()).collect();
    tab.wait_for("document.getElementById('note').innerText.includes('limit')");
    tab.wait_for("samples.length > 5");
    tab.look("open-files");
    drop(peers);
    tab.wait_for(&text("connections", "0"));
    let pid = rustix::process::Pid::from_raw(server.pid() as i32);
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    let limits = rustix::process::Rlimit { current: Some(open), maximum: Some(open) };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limits).unwrap();
    let _peers: Vec<_> = (0..8).map(|_| server.connect()).collect();
    tab.wait_for("document.getElementById('note').innerText.includes('no descriptor')");
    tab.look("no-descriptor");
    tab.go("about:blank");

    // Several listeners of all kinds: the page agrees with what is scraped. And a stop that is delayed.
    let directory = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", directory.path().join("echo-with-a-long-name.sock").display());
    let flags = ["--http", "0", "--stop-delay", "10m", "--deny", "127.0.0.2", "--terminator", "bye"];
    let mut server = Server::start_on(&["127.0.0.1:0", "[::1]:0", &unix, "udp:127.0.0.1:0"], &flags);
    let inside = server.inside();
    let addresses: Vec<_> = server.endpoints.clone();
    let loads: Vec<_> = addresses.iter().map(|address| Load::on(address, "-c 7 -r 100")).collect();
    tab.go(&format!("http://{inside}/"));
    tab.wait_for(&text("connections", "21"));
    tab.wait_for("samples.length > 5 && samples.some(sample => sample.answered > 0)");
    drop(loads);
    tab.wait_for(&text("connections", "0"));
    let (_, metrics) = common::get(inside, "/metrics");
    let labelled = |name: &str, label: &str| {
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(&format!("{name}{{{label}=\"")));
        let pairs = lines.map(|line| line.split_once("\"} ").unwrap());
        pairs.map(|(which, count)| (which.replace('_', " "), count.parse().unwrap())).collect::<Vec<(String, u64)>>()
    };
    for (table, metric, label) in [
        ("closed", "echoloop_closed_total", "reason"),
        ("refusals", "echoloop_refused_total", "reason"),
        ("listeners", "echoloop_listener_connections", "listener"),
    ] {
        let shown = tab.ask(&format!(
            "[...document.querySelectorAll('#{table} tr')].map(row => [row.cells[0].textContent.replaceAll('_', ' '),
                Number(row.cells[1].textContent.replaceAll(',', ''))])"
        ));
        let (mut shown, mut told) =
            (serde_json::from_value::<Vec<(String, u64)>>(shown).unwrap(), labelled(metric, label));
        shown.sort();
        told.sort();
        assert_eq!(shown, told, "{table}");
    }
    server.signal(Signal::TERM);
    tab.wait_for("document.getElementById('note').innerText.includes('stop delay')");
    let _load = Load::on(&addresses[1], "-c 7 -r 100");
    tab.wait_for(&text("connections", "7"));
    tab.look("stop-delay");

    // One that takes nothing keeps it from ending.
    let mut server = Server::start(&["--http", "0", "--send-buffer", "4KiB", "--drain-timeout", "10m"]);
    let origin = format!("http://{}/", server.inside());
    let stuck = stuck(&server);
    tab.go(&origin);
    tab.wait_for(&text("w", "1"));
    server.signal(Signal::TERM);
    tab.wait_for("document.getElementById('note').innerText.includes('stopping')");
    tab.wait_for(&text("listening", "nothing any more"));
    tab.look("stopping");
    drop(stuck);
    assert_eq!(tab.complaints, Vec::<Value>::new());
}

/// A connection that has sent until nothing more went, and reads nothing; how much, and of what.
fn stuck(server: &Server) -> (std::net::TcpStream, usize, Vec<u8>) {
    let mut stuck = server.connect();
    stuck.set_nonblocking(true).unwrap();
    let bytes = noise(1, 16 << 20);
    let mut sent = 0;
    while let Ok(count) = stuck.write(&bytes[sent..]) {
        sent += count;
        assert!(sent < bytes.len());
    }
    (stuck, sent, bytes)
}

#[test]
#[ignore = "needs Chromium and axe-core"]
fn live_page_shows_what_happens_in_the_loop() {
    let flags = ["--http", "0", "--send-buffer", "4KiB", "--deny", "127.0.0.2"];
    let mut server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &flags);
    let origin = format!("http://{}/", server.inside());
    let mut tab = Tab::open(&origin);
    let cells =
        |letter: &str, count: usize| format!("document.querySelectorAll('#cells i.{letter}').length === {count}");
    tab.wait_for(&text("connections", "0"));
    tab.wait_for("document.getElementById('none').getClientRects().length === 1");
    tab.wait_for(&format!("document.getElementById('listening').textContent === '{}'", server.endpoints.join(", ")));
    tab.look("empty");

    // Connections come, light up when they move, and become idle.
    let mut peers = server.connect_many(19);
    tab.wait_for(&text("connections", "19"));
    tab.wait_for(&cells("i", 19));
    tab.wait_for(&text("i", "19"));
    tab.wait_for("document.getElementById('none').getClientRects().length === 0");
    let mut writer = peers[3].try_clone().unwrap();
    let busy = std::thread::spawn(move || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            ping(&mut writer, &[7; 10_000]);
        }
    });
    tab.wait_for(&cells("a", 1));
    tab.wait_for("document.querySelectorAll('#cells i')[3].className === 'a'");
    tab.wait_for("/ [KM]iB$/.test(document.getElementById('received').textContent)");
    busy.join().unwrap();
    tab.wait_for(&cells("i", 19));

    // One that sends and does not read waits for WRITABLE, and goes on when it reads.
    let (mut stuck, sent, bytes) = stuck(&server);
    tab.wait_for(&cells("w", 1));
    tab.wait_for("document.querySelectorAll('#cells i')[19].className === 'w'");
    tab.wait_for(&text("w", "1"));
    tab.wait_for("/ [KM]iB$/.test(document.getElementById('waiting-bytes').textContent)");
    tab.wait_for("samples.some(sample => sample.partial > 0)");
    // What is refused has a reason, and datagrams are seen.
    let row = |table: &str, name: &str, count: &str| {
        format!(
            "[...document.querySelectorAll('#{table} tr')].some(row => row.innerText.trim().split(/\\s{{2,}}|\\t/).join('=') === '{name}={count}')"
        )
    };
    let denied = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    denied.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    denied.connect(&server.addr().into()).unwrap();
    tab.wait_for(&row("refusals", "denied", "1"));
    let port = UdpSocket::bind("127.0.0.1:0").unwrap();
    port.send_to(b"datagram", server.addrs[1]).unwrap();
    tab.wait_for("samples.some(sample => sample.came > 0)");
    tab.wait_for("document.querySelector('section.udp').getClientRects().length === 1");
    tab.look("busy");
    stuck.set_nonblocking(false).unwrap();
    common::receive(&mut stuck, &bytes[..sent]);
    tab.wait_for(&cells("w", 0));
    peers.clear();
    drop((stuck, peers));
    tab.wait_for(&text("connections", "0"));
    tab.wait_for("document.querySelectorAll('#cells i.i, #cells i.a').length === 0");

    // The charts have moved, and each is as wide as its section.
    let charts = tab.ask(
        "[...document.querySelectorAll('svg')].map(svg => [svg.clientWidth, svg.parentNode.clientWidth, Math.max(
            ...[...svg.querySelectorAll('polyline')].map(line => line.getBBox().height))])",
    );
    assert_eq!(charts.as_array().unwrap().len(), 5);
    for (number, chart) in charts.as_array().unwrap().iter().enumerate() {
        let [width, room, height] = [0, 1, 2].map(|at| chart[at].as_f64().unwrap());
        // How long it is awake is drawn on a scale of its own, and depends on the machine.
        let least = if number == 0 { 0.0 } else { 20.0 };
        assert!(width > 0.8 * room && height > least, "{charts}");
    }

    // The server goes, and the page says so.
    server.stop();
    tab.wait_for(&text("trouble", "the server does not answer"));
    tab.wait_for("getComputedStyle(document.querySelector('main')).filter === 'grayscale(1)'");
    tab.wait_for("document.getElementById('since').textContent !== ''");
    tab.look("gone");
    // Nothing was asked of anybody else. That the server is gone is the one thing that the console says.
    assert!(tab.requests.iter().all(|url| *url == format!("{origin}state")), "{:?}", tab.requests);
    let is_refused =
        |it: &Value| it["params"]["entry"]["text"].as_str().is_some_and(|it| it.contains("ERR_CONNECTION"));
    assert!(tab.complaints.iter().all(is_refused), "{:?}", tab.complaints);
}
