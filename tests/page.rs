//! The pages in a real browser: Chromium, without a head. Ignored unless asked for, since it needs one:
//! `cargo test --test page -- --ignored`.

mod common;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{PATIENCE, Server, dial, echoloop, get, noise, ping, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

/// What Chromium is started with.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
];

fn chromium() -> &'static str {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
        .expect("Chromium is installed")
}

/// Run in the page: what it looks like, told to the page around it.
const PROBE: &str = "<script>addEventListener('load', () => {
    const shown = [...document.querySelectorAll('figure div svg')].filter(svg => svg.getClientRects().length);
    parent.tell({
        width: innerWidth,
        overflow: document.documentElement.scrollWidth - innerWidth,
        requests: performance.getEntriesByType('resource').map(entry => entry.name),
        charts: shown.map(svg => ({
            label: svg.getAttribute('aria-label'),
            width: svg.getBoundingClientRect().width,
            lines: [...svg.querySelectorAll('polyline')].filter(line => {
                const box = line.getBBox();
                return line.points.length > 1 && box.width + box.height > 20;
            }).length,
            text: Math.min(...[...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect().height)),
        })),
    });
})</script>";

/// Opens `page` at the width of a desk and at that of a phone, and returns what the probe found at each.
fn open(page: &Path) -> Vec<Value> {
    let html = fs::read_to_string(page).unwrap().replace("</body>", &format!("{PROBE}</body>"));
    let source = html.replace('&', "&amp;").replace('"', "&quot;");
    let frame = |width: u32| format!("<iframe width={width} height=900 srcdoc=\"{source}\"></iframe>");
    let outer = format!(
        "<!doctype html><meta charset=utf-8><link rel=icon href=data:,><pre id=told></pre>
        <script>const all = []; function tell(it) {{
            all.push(it);
            document.getElementById('told').textContent = JSON.stringify(all.sort((a, b) => b.width - a.width));
        }}</script>{}{}",
        frame(1200),
        frame(390)
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("outer.html");
    fs::write(&file, outer).unwrap();
    let output = Command::new("timeout")
        .args(["60", chromium()])
        .args(FLAGS)
        .args(["--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!log.contains("CONSOLE"), "{log}");
    let told = dom.split("<pre id=\"told\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    let told = told.unwrap_or_else(|| panic!("{dom}{log}"));
    serde_json::from_str(&told.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")).unwrap()
}

/// Every chart is there, at both widths, with so many lines, and nothing is asked of a network. Charts without lines may
/// stand side by side.
fn check(page: &Path, lines: &[u64], side_by_side: bool) {
    let frames = open(page);
    assert_eq!(frames.len(), 2);
    for frame in &frames {
        assert_eq!(frame["requests"], serde_json::json!([]));
        assert!(frame["overflow"].as_i64().unwrap() <= 0, "it scrolls sideways: {frame}");
        let charts = frame["charts"].as_array().unwrap();
        let found: Vec<_> = charts.iter().map(|chart| chart["lines"].as_u64().unwrap()).collect();
        assert_eq!(found, lines, "{frame:#}");
        for chart in charts {
            assert!(chart["label"].as_str().unwrap().contains(" goes from "), "{chart}");
            // On a desk lines of text, and charts with them, are no longer than can be read.
            let room = frame["width"].as_f64().unwrap().min(960.0);
            let part = if side_by_side && chart["lines"] == 0 { 0.4 } else { 0.75 };
            assert!(chart["width"].as_f64().unwrap() > part * room, "{chart}");
            assert!(chart["text"].as_f64().unwrap() >= 9.0, "its text is too small to be read: {chart}");
        }
    }
}

#[test]
#[ignore = "needs Chromium"]
fn every_chart_is_there_on_a_desk_and_on_a_phone() {
    let server = Server::start(&[]);
    let address = server.addr().to_string();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let bench = |flags: &str| {
        let flags = format!("bench {address} -q --warm-up 0s -c 10 {flags}");
        let output = echoloop(&flags.split(' ').collect::<Vec<_>>(), b"");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    };
    bench(&format!("-t 3s --json {} --html {}", path("closed.json"), path("closed.html")));
    // Throughput, latency over time, the heat map, percentiles, the histogram: the last but one has no lines.
    check(path("closed.html").as_ref(), &[1, 4, 0, 1, 0], false);
    bench(&format!("-t 3s -r 5000 --json {} --html {}", path("open.json"), path("open.html")));
    check(path("open.html").as_ref(), &[1, 4, 0, 2, 0], false);
    bench(&format!("--find-rate p99<1s --rate 100000 -t 1500ms --html {}", path("search.html")));
    check(path("search.html").as_ref(), &[1, 4, 0, 2, 0, 2], false);
    let both = ["report", &path("closed.json"), &path("open.json"), "--html", &path("both.html")];
    assert_eq!(echoloop(&both, b"").status.code(), Some(0));
    // Throughput, two of latency, the percentiles, and a heat map of each.
    check(path("both.html").as_ref(), &[2, 2, 3, 2, 0, 0], true);
}

/// A page in a browser that is asked things, over the DevTools protocol.
struct Tab {
    browser: Child,
    _profile: TempDir,
    socket: WebSocket<TcpStream>,
    calls: u64,
    /// What the page threw.
    exceptions: Vec<Value>,
}

impl Tab {
    fn open(url: &str) -> Tab {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(chromium());
        command.args(FLAGS).arg("--remote-debugging-port=0");
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let browser = command.spawn().unwrap();
        let mut port = None;
        wait_until("the browser listens", || {
            let told = fs::read_to_string(profile.path().join("DevToolsActivePort")).unwrap_or_default();
            port = told.lines().next().and_then(|line| line.parse::<u16>().ok());
            port.is_some()
        });
        let addr = ([127, 0, 0, 1], port.unwrap()).into();
        let mut target = None;
        wait_until("the page is there", || {
            let pages: Value = serde_json::from_str(&get(addr, "/json/list").1).unwrap();
            let page = pages.as_array().unwrap().iter().find(|page| page["url"] == url).cloned();
            target = page.map(|page| page["webSocketDebuggerUrl"].as_str().unwrap().to_owned());
            target.is_some()
        });
        let stream = dial(addr);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(target.unwrap(), stream).unwrap();
        let mut tab = Tab { browser, _profile: profile, socket, calls: 0, exceptions: Vec::new() };
        tab.call("Runtime.enable", json!({}));
        tab.wait_for(&format!("location.href === '{url}' && document.readyState === 'complete'"));
        tab
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let call = json!({ "id": self.calls, "method": method, "params": params });
        self.socket.send(Message::text(call.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().unwrap() else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["method"] == "Runtime.exceptionThrown" {
                self.exceptions.push(answer);
            } else if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    fn ask(&mut self, expression: &str) -> Value {
        let result = self.call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Writes pictures of the page, on a desk, a tablet and a phone, by day and by night, for people to look at:
    /// target/pages/NAME-WIDTH-SCHEME.png.
    fn shoot(&mut self, name: &str) {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../pages");
        fs::create_dir_all(&directory).unwrap();
        for scheme in ["light", "dark"] {
            let feature = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
            self.call("Emulation.setEmulatedMedia", feature);
            for width in [1280, 768, 390] {
                let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500 });
                self.call("Emulation.setDeviceMetricsOverride", metrics);
                self.wait_for(&format!("innerWidth === {width} && document.documentElement.scrollWidth <= {width}"));
                let picture = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
                let picture = base64::Engine::decode(
                    &base64::engine::general_purpose::STANDARD,
                    picture["data"].as_str().unwrap(),
                );
                fs::write(directory.join(format!("{name}-{width}-{scheme}.png")), picture.unwrap()).unwrap();
            }
        }
        self.call("Emulation.clearDeviceMetricsOverride", json!({}));
        self.call("Emulation.setEmulatedMedia", json!({ "features": [] }));
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    fn wait_for(&mut self, expression: &str) {
        wait_until(expression, || self.ask(expression) == json!(true));
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let _ = self.socket.send(Message::text(json!({ "id": 0, "method": "Browser.close" }).to_string()));
        let _ = self.browser.wait();
    }
}

#[test]
#[ignore = "needs Chromium"]
fn the_live_page_shows_what_happens_in_the_loop() {
    let flags = ["--http", "0", "--send-buffer", "4KiB", "--deny", "127.0.0.2"];
    let mut server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &flags);
    let origin = format!("http://{}/", server.inside());
    let mut tab = Tab::open(&origin);
    let text = |id: &str, is: &str| format!("document.getElementById('{id}').textContent === '{is}'");
    let cells =
        |letter: &str, count: usize| format!("document.querySelectorAll('#cells i.{letter}').length === {count}");
    tab.wait_for(&text("connections", "0"));
    tab.wait_for("document.getElementById('none').getClientRects().length === 1");
    tab.wait_for(&format!("document.getElementById('listening').textContent === '{}'", server.endpoints.join(", ")));
    tab.shoot("empty");

    // Connections come, light up when they move, and become idle.
    let mut peers = server.connect_many(20);
    tab.wait_for(&text("connections", "20"));
    tab.wait_for(&cells("i", 20));
    tab.wait_for(&text("i", "20"));
    tab.wait_for("document.getElementById('none').getClientRects().length === 0");
    let mut writer = peers[3].try_clone().unwrap();
    let busy = std::thread::spawn(move || {
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(3) {
            ping(&mut writer, &[7; 10_000]);
        }
    });
    tab.wait_for(&cells("a", 1));
    tab.wait_for("document.querySelectorAll('#cells i')[3].className === 'a'");
    tab.wait_for("/ [KM]iB$/.test(document.getElementById('received').textContent)");
    busy.join().unwrap();
    tab.wait_for(&cells("i", 20));

    // One that sends and does not read waits for WRITABLE, and goes on when it reads.
    let mut stuck = peers.pop().unwrap();
    stuck.set_nonblocking(true).unwrap();
    let bytes = noise(1, 16 << 20);
    let mut sent = 0;
    while let Ok(count) = stuck.write(&bytes[sent..]) {
        sent += count;
        assert!(sent < bytes.len());
    }
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
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    port.send_to(b"datagram", server.addrs[1]).unwrap();
    tab.wait_for("samples.some(sample => sample.came > 0)");
    tab.wait_for("document.querySelector('section.udp').getClientRects().length === 1");
    tab.shoot("busy");
    stuck.set_nonblocking(false).unwrap();
    common::receive(&mut stuck, &bytes[..sent]);
    tab.wait_for(&cells("w", 0));
    drop((stuck, peers));
    tab.wait_for(&text("connections", "0"));
    tab.wait_for("document.querySelectorAll('#cells i.i, #cells i.a').length === 0");

    // The charts have moved, each is as wide as its section, and nothing is asked of anybody else.
    let charts = tab.ask(
        "[...document.querySelectorAll('svg')].map(svg => [svg.clientWidth, svg.parentNode.clientWidth, Math.max(
            ...[...svg.querySelectorAll('polyline')].map(line => line.getBBox().height))])",
    );
    assert_eq!(charts.as_array().unwrap().len(), 5);
    for chart in charts.as_array().unwrap() {
        let [width, room, height] = [0, 1, 2].map(|at| chart[at].as_f64().unwrap());
        assert!(width > 0.8 * room && height > 20.0, "{charts}");
    }
    let asked = tab.ask("performance.getEntriesByType('resource').map(entry => entry.name)");
    assert!(asked.as_array().unwrap().iter().all(|url| *url == format!("{origin}state")), "{asked}");

    // On a phone it does not scroll sideways; at night it is dark.
    let metrics = json!({ "width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": true });
    tab.call("Emulation.setDeviceMetricsOverride", metrics);
    tab.wait_for("innerWidth === 390 && document.documentElement.scrollWidth <= 390");
    let ground = "getComputedStyle(document.body).backgroundColor";
    let feature = |value: &str| json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
    tab.call("Emulation.setEmulatedMedia", feature("light"));
    let light = tab.ask(ground);
    tab.call("Emulation.setEmulatedMedia", feature("dark"));
    assert_ne!(tab.ask(ground), light);

    // The server goes, and the page says so.
    server.stop();
    tab.wait_for(&text("trouble", "the server does not answer"));
    tab.wait_for("getComputedStyle(document.querySelector('main')).filter === 'grayscale(1)'");
    tab.wait_for("document.getElementById('since').textContent !== ''");
    tab.shoot("gone");
    assert_eq!(tab.exceptions, Vec::<Value>::new());
}
