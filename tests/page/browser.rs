//! A page in Chromium that is asked things, over the DevTools protocol.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::common::{PATIENCE, dial, get, wait_until};

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
    "--remote-debugging-port=0",
];

/// The widths of a desk, a tablet and a phone.
const WIDTHS: [u32; 3] = [1280, 768, 390];

fn chromium() -> &'static str {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
        .expect("Chromium is installed")
}

/// axe-core, which checks pages for accessibility.
fn axe() -> String {
    let installed = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../axe/node_modules/axe-core/axe.min.js");
    let path = std::env::var_os("ECHOLOOP_AXE").map_or(installed, PathBuf::from);
    fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}: `npm install --prefix target/axe axe-core` gets it", path.display())
    })
}

pub struct Tab {
    browser: Child,
    _profile: TempDir,
    socket: WebSocket<TcpStream>,
    calls: u64,
    /// What the page threw, and what its console said.
    pub complaints: Vec<Value>,
    /// What the page asked for.
    pub requests: Vec<String>,
}

impl Tab {
    pub fn open(url: &str) -> Tab {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(chromium());
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
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
            let page = pages.as_array().unwrap().iter().find(|page| page["type"] == "page").cloned();
            target = page.map(|page| page["webSocketDebuggerUrl"].as_str().unwrap().to_owned());
            target.is_some()
        });
        let stream = dial(addr);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(target.unwrap(), stream).unwrap();
        let (complaints, requests) = (Vec::new(), Vec::new());
        let mut tab = Tab { browser, _profile: profile, socket, calls: 0, complaints, requests };
        for domain in ["Runtime", "Network", "Log", "Page"] {
            tab.call(&format!("{domain}.enable"), json!({}));
        }
        tab.go(url);
        tab
    }

    pub fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        self.wait_for(&format!("location.href === '{url}' && document.readyState === 'complete'"));
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let call = json!({ "id": self.calls, "method": method, "params": params });
        self.socket.send(Message::text(call.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().unwrap() else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            match answer["method"].as_str() {
                Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") => {
                    self.complaints.push(answer);
                }
                Some("Network.requestWillBeSent") => {
                    let url = answer["params"]["request"]["url"].as_str().unwrap();
                    if answer["params"]["type"] != "Document" && !url.starts_with("data:") {
                        self.requests.push(url.to_owned());
                    }
                }
                None if answer["id"] == self.calls => {
                    assert!(answer["error"].is_null(), "{method}: {answer}");
                    return answer["result"].clone();
                }
                _ => {}
            }
        }
    }

    /// The value of an expression in the page, or of what it promises.
    pub fn ask(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub fn wait_for(&mut self, expression: &str) {
        wait_until(expression, || self.ask(expression) == json!(true));
    }

    /// By day or by night, "light" or "dark".
    pub fn scheme(&mut self, scheme: &str) {
        let feature = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", feature);
    }

    /// As wide as this, without scrolling sideways.
    #[track_caller]
    pub fn width(&mut self, width: u32) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.wait_for(&format!("innerWidth === {width} && document.documentElement.scrollWidth <= {width}"));
    }

    /// Looks at the page on a desk, a tablet and a phone, by day and by night: nothing sticks out, and axe finds nothing to
    /// complain of. Writes a picture of each, for people to look at: target/pages/NAME-WIDTH-SCHEME.png.
    #[track_caller]
    pub fn look(&mut self, name: &str) {
        for scheme in ["light", "dark"] {
            self.scheme(scheme);
            for width in WIDTHS {
                self.width(width);
                self.shoot(&format!("{name}-{width}-{scheme}"));
                if width != WIDTHS[1] {
                    let found = self.violations();
                    assert!(found == json!([]), "{name}, {width} pixels, {scheme}: {found:#}");
                }
            }
        }
        self.call("Emulation.clearDeviceMetricsOverride", json!({}));
        self.call("Emulation.setEmulatedMedia", json!({ "features": [] }));
    }

    pub fn shoot(&mut self, name: &str) {
        let size = self.ask("[innerWidth, document.documentElement.scrollHeight]");
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        let picture = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true, "clip": clip }));
        save(&format!("{name}.png"), &picture["data"]);
    }

    /// As it is printed, on A4.
    pub fn print(&mut self, name: &str) {
        let page = self.call("Page.printToPDF", json!({ "paperWidth": 8.27, "paperHeight": 11.69 }));
        save(&format!("{name}.pdf"), &page["data"]);
    }

    /// What axe-core finds wrong with the page.
    fn violations(&mut self) -> Value {
        if self.ask("typeof axe") == "undefined" {
            self.ask(&(axe() + ";0"));
        }
        self.ask(
            "axe.run().then(result => result.violations.map(found => ({ rule: found.id, help: found.help,
                nodes: found.nodes.slice(0, 3).map(node => node.html.slice(0, 200) + ' ' + node.failureSummary) })))",
        )
    }
}

fn save(name: &str, data: &Value) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../pages");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(name), STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap();
}

impl Drop for Tab {
    fn drop(&mut self) {
        let _ = self.socket.send(Message::text(json!({ "id": 0, "method": "Browser.close" }).to_string()));
        let _ = self.browser.wait();
    }
}
