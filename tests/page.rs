//! The report's page in a real browser: Chromium, without a head. Ignored unless asked for, since it needs one:
//! `cargo test --test page -- --ignored`.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Server, echoloop};
use serde_json::Value;

/// Run in the page: what it looks like, told to the page around it.
const PROBE: &str = "<script>addEventListener('load', () => {
    const shown = [...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length);
    parent.tell({
        width: innerWidth,
        overflow: document.documentElement.scrollWidth - innerWidth,
        requests: performance.getEntriesByType('resource').map(entry => entry.name),
        charts: shown.map(svg => ({
            label: svg.getAttribute('aria-label'),
            width: svg.getBoundingClientRect().width,
            lines: [...svg.querySelectorAll('polyline')].filter(line => {
                const box = line.getBBox();
                if (line.getAttribute('stroke') === '#888888') return false; // an axis
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
    let chromium = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
        .expect("Chromium is installed");
    let output = Command::new("timeout")
        .args(["60", chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"])
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

/// Every chart is there, at both widths, with so many lines, and nothing is asked of a network.
fn check(page: &Path, lines: &[u64]) {
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
            assert!(chart["width"].as_f64().unwrap() > 0.75 * room, "{chart}");
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
    check(path("closed.html").as_ref(), &[1, 4, 1]);
    bench(&format!("-t 3s -r 5000 --json {} --html {}", path("open.json"), path("open.html")));
    check(path("open.html").as_ref(), &[1, 4, 2]);
    bench(&format!("--find-rate p50<1s --rate 100000 -t 1500ms --html {}", path("search.html")));
    check(path("search.html").as_ref(), &[1, 4, 2, 2]);
    let both = ["report", &path("closed.json"), &path("open.json"), "--html", &path("both.html")];
    assert_eq!(echoloop(&both, b"").status.code(), Some(0));
    check(path("both.html").as_ref(), &[2, 2, 3]);
}
