//! The command: what goes where, and its exit codes.

use assert_cmd::Command;

use crate::support::{Files, load};

fn balancer(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("balancer").unwrap();
    let output = command
        .args(arguments)
        .env("WEB_PORT", "8088")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn toml_goes_to_standard_output_and_the_rest_to_standard_error() {
    let files = Files::new(&[(
        "h.cfg",
        "defaults\n mode http\n option httplog\nlisten l\n bind \":${WEB_PORT}\"\n cookie S insert\n server s 10.0.0.1:80\n",
    )]);
    let path = files.path("h.cfg");
    let path = path.to_str().unwrap();
    let (code, out, err) = balancer(&["import", "haproxy", path, "--cookie-key", "/etc/own.key"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(load(&out).http.frontends[0].address.port() == 8088);
    assert!(out.contains("key_file = \"/etc/own.key\""), "{out}");
    assert!(
        err.contains(&format!("{path}:3: option httplog: ")),
        "{err}"
    );
    assert!(
        err.contains(&format!("note: {path}:6: cookie S insert: ")),
        "{err}"
    );
}

#[test]
fn what_comes_out_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, name) in [
        (
            &["haproxy", "tests/import/article/haproxy.cfg"][..],
            "h.toml",
        ),
        (
            &[
                "workers",
                "tests/import/article/workers.properties",
                "--httpd",
                "tests/import/article/httpd.conf",
            ],
            "w.toml",
        ),
    ] {
        let (code, out, err) = balancer(&[&["import"][..], arguments].concat());
        assert_eq!(code, Some(0), "{err}");
        // Document roots have to be there.
        let root = folder.path().join("www");
        for site in ["mago3d-user", "mago3d-admin"] {
            std::fs::create_dir_all(root.join(site)).unwrap();
        }
        let path = folder.path().join(name);
        std::fs::write(&path, out.replace("/var/www", root.to_str().unwrap())).unwrap();
        let (code, out, err) = balancer(&["check", path.to_str().unwrap()]);
        assert_eq!(
            (code, out.as_str()),
            (Some(0), "configuration is valid\n"),
            "{err}"
        );
    }
}

#[test]
fn mistakes_have_a_place_and_exit_code_1() {
    let files = Files::new(&[
        ("h.cfg", "listen l\n bind 'x\n"),
        ("n.conf", "http {\n"),
        ("w.properties", "x\n"),
    ]);
    let path = |name: &str| files.path(name).to_str().unwrap().to_owned();
    for (kind, name, place) in [
        ("haproxy", "h.cfg", ":2:7: "),
        ("nginx", "n.conf", ":1:1: "),
        ("workers", "w.properties", ":1:1: "),
    ] {
        let (code, out, err) = balancer(&["import", kind, &path(name)]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains(&format!("{}{place}", path(name))), "{err}");
        assert!(err.contains("; expected "), "{err}");
    }
    let (code, _, err) = balancer(&["import", "haproxy", &path("none")]);
    assert_eq!(code, Some(1));
    assert!(err.contains("can't be read"), "{err}");
    assert_eq!(balancer(&["import", "apache", "x"]).0, Some(2));
}
