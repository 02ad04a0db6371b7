use axum::http::Request;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

#[test]
fn names_resolve_below_the_root() {
    for (request, path) in [
        ("", "index.html"),
        ("/", "index.html"),
        ("app.js", "app.js"),
        ("a%20b/c.css", "a b/c.css"),
    ] {
        assert_eq!(resolve(request), Some(path.into()), "{request}");
    }
}

#[test]
fn no_name_leads_out_of_the_root_or_to_hidden_files() {
    for request in [
        "../etc/passwd",
        "a/../../etc/passwd",
        "%2e%2e/etc/passwd",
        "..%2fetc/passwd",
        ".git/config",
        "a/.env",
        "a\\..\\b",
        "%00",
        "%zz",
        "%f",
        "%ff",
    ] {
        assert_eq!(resolve(request), None, "{request}");
    }
}

proptest! {
    #[test]
    fn every_request_stays_below_the_root(request in "[a-z./%0-9\\\\]{0,40}") {
        if let Some(path) = resolve(&request) {
            prop_assert!(path.is_relative());
            prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
        }
    }

    #[test]
    fn every_range_lies_in_the_file(field in "(bytes=)?[0-9a-z,=+-]{0,44}", length: u64) {
        if let Part::Range { first, length: part } = range_of(&field, length) {
            prop_assert!(part >= 1 && first < length && part <= length - first);
        }
    }
}

#[test]
fn ranges_follow_the_rfc() {
    let range = |first, length| Part::Range { first, length };
    let none = Part::None(StatusCode::RANGE_NOT_SATISFIABLE);
    for (field, part) in [
        ("bytes=0-499", range(0, 500)),
        ("bytes=500-999", range(500, 500)),
        ("BYTES=9500-", range(9500, 500)),
        ("bytes=-500", range(9500, 500)),
        ("bytes=-20000", range(0, 10_000)),
        ("bytes=9999-20000", range(9999, 1)),
        ("bytes=0-18446744073709551615", range(0, 10_000)),
        ("bytes=10000-", none),
        ("bytes=10000-10001", none),
        ("bytes=-0", none),
        ("bytes=1-0", Part::Whole),
        ("bytes=0-0,9-9", Part::Whole),
        ("bytes=+1-2", Part::Whole),
        ("bytes=-", Part::Whole),
        ("lines=1-2", Part::Whole),
        ("bytes", Part::Whole),
    ] {
        assert_eq!(range_of(field, 10_000), part, "{field}");
    }
    assert_eq!(range_of("bytes=-1", 0), none);
}

#[test]
fn accepted_codings_follow_the_header() {
    let of = |field: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, field.parse().unwrap());
        let names: Vec<&str> = accepted(&headers).iter().map(|(name, _)| *name).collect();
        names.join(" ")
    };
    for (field, codings) in [
        ("gzip, deflate, br, zstd", "br gzip"),
        ("gzip", "gzip"),
        ("BR;q=0.1", "br"),
        ("br;q=0, gzip; q=1.0", "gzip"),
        ("*", "br gzip"),
        ("*;q=0, br", "br"),
        ("br;q=x", ""),
        ("identity", ""),
        ("", ""),
    ] {
        assert_eq!(of(field), codings, "{field}");
    }
    assert!(accepted(&HeaderMap::new()).is_empty());
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    home
}

/// Asks for a file. Returns the answer and its text.
async fn ask(
    root: &Path,
    method: Method,
    name: &str,
    fields: &[(HeaderName, &str)],
) -> (Response<()>, String) {
    let mut request = Request::builder().method(method);
    for (name, value) in fields {
        request = request.header(name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let (head, body) = file(root, name, &parts).await.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    (Response::from_parts(head, ()), text)
}

fn field(response: &Response<()>, name: HeaderName) -> &str {
    response
        .headers()
        .get(name)
        .map_or("", |v| v.to_str().unwrap())
}

#[tokio::test]
async fn conditional_and_range_requests_are_answered() {
    let home = folder(&[("a.js", "0123456789")]);
    let get = |fields: Vec<(HeaderName, String)>| {
        let root = home.path().to_owned();
        async move {
            let fields: Vec<_> = fields
                .iter()
                .map(|(n, v)| (n.clone(), v.as_str()))
                .collect();
            ask(&root, Method::GET, "a.js", &fields).await
        }
    };
    let (first, text) = get(vec![]).await;
    assert_eq!(
        (first.status(), text.as_str()),
        (StatusCode::OK, "0123456789")
    );
    let tag = field(&first, header::ETAG).to_owned();
    let date = field(&first, header::LAST_MODIFIED).to_owned();
    let long_ago = String::from("Sun, 06 Nov 1994 08:49:37 GMT");
    let other = String::from("\"other\"");
    let range = (header::RANGE, String::from("bytes=2-3"));
    for (fields, code) in [
        (vec![(header::IF_NONE_MATCH, tag.clone())], 304),
        (
            vec![(header::IF_NONE_MATCH, format!("\"x\", W/{tag}"))],
            304,
        ),
        (vec![(header::IF_NONE_MATCH, other.clone())], 200),
        (vec![(header::IF_MODIFIED_SINCE, date.clone())], 304),
        (vec![(header::IF_MODIFIED_SINCE, long_ago.clone())], 200),
        // The tag counts more than the date.
        (
            vec![
                (header::IF_NONE_MATCH, other.clone()),
                (header::IF_MODIFIED_SINCE, date.clone()),
            ],
            200,
        ),
        (vec![(header::IF_MATCH, other.clone())], 412),
        (vec![(header::IF_UNMODIFIED_SINCE, long_ago)], 412),
        (vec![range.clone()], 206),
        (vec![range.clone(), (header::IF_RANGE, tag.clone())], 206),
        (vec![range.clone(), (header::IF_RANGE, other)], 200),
        (vec![(header::RANGE, "bytes=10-".into())], 416),
    ] {
        let (answer, text) = get(fields.clone()).await;
        assert_eq!(answer.status(), code, "{fields:?}");
        assert_eq!(field(&answer, header::ETAG), tag);
        match code {
            206 => {
                assert_eq!(text, "23");
                assert_eq!(field(&answer, header::CONTENT_RANGE), "bytes 2-3/10");
                assert_eq!(field(&answer, header::CONTENT_LENGTH), "2");
            }
            304 => assert_eq!(text, ""),
            416 => assert_eq!(field(&answer, header::CONTENT_RANGE), "bytes */10"),
            _ => {}
        }
    }
    let (head, text) = ask(
        home.path(),
        Method::HEAD,
        "a.js",
        &[(header::RANGE, "bytes=2-3")],
    )
    .await;
    assert_eq!((head.status(), text.as_str()), (StatusCode::OK, ""));
    assert_eq!(field(&head, header::CONTENT_LENGTH), "10");
}

#[tokio::test]
async fn a_fresh_compressed_form_is_sent_to_clients_that_accept_it() {
    let home = folder(&[
        ("a.wasm", "plain"),
        ("a.wasm.gz", "gzip"),
        ("a.wasm.br", "brotli"),
    ]);
    let get = async |accept: &str| {
        let accept = (header::ACCEPT_ENCODING, accept);
        ask(home.path(), Method::GET, "a.wasm", &[accept]).await
    };
    let mut tags = Vec::new();
    for (accept, coding, text) in [
        ("br, gzip", "br", "brotli"),
        ("gzip", "gzip", "gzip"),
        ("deflate", "", "plain"),
    ] {
        let (answer, body) = get(accept).await;
        assert_eq!(body, text);
        assert_eq!(field(&answer, header::CONTENT_ENCODING), coding);
        assert_eq!(field(&answer, header::CONTENT_TYPE), "application/wasm");
        assert_eq!(field(&answer, header::VARY), "accept-encoding");
        tags.push(field(&answer, header::ETAG).to_owned());
    }
    tags.dedup();
    assert_eq!(tags.len(), 3, "each form has a tag of its own");
    let old = File::open(home.path().join("a.wasm.br")).unwrap();
    let modified = old.metadata().unwrap().modified().unwrap();
    let before = modified - std::time::Duration::from_secs(60);
    old.set_modified(before).unwrap();
    assert_eq!(get("br").await.1, "plain");
}

#[cfg(unix)]
#[tokio::test]
async fn no_link_leads_out_of_the_root() {
    use std::os::unix::fs::symlink;
    let home = folder(&[
        ("www/a.txt", "a"),
        ("www/.hidden", "secret"),
        ("secret", "secret"),
    ]);
    let www = home.path().join("www");
    symlink("a.txt", www.join("inside")).unwrap();
    symlink("../secret", www.join("outside")).unwrap();
    symlink("..", www.join("above")).unwrap();
    symlink(".hidden", www.join("shown")).unwrap();
    symlink("../secret", www.join("a.txt.br")).unwrap();
    symlink("/dev/zero", www.join("endless")).unwrap();
    let get = async |name: &str| {
        let accept = (header::ACCEPT_ENCODING, "br");
        ask(&www, Method::GET, name, &[accept]).await
    };
    assert_eq!(get("inside").await.1, "a");
    assert_eq!(get("a.txt").await.1, "a");
    for name in ["outside", "above/secret", "shown", "endless", ""] {
        assert_eq!(get(name).await.0.status(), StatusCode::NOT_FOUND, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_becomes_shorter_is_cut_off() {
    use futures::TryStreamExt as _;
    let home = folder(&[("a", "0123456789")]);
    let path = home.path().join("a");
    let file = File::open(&path).unwrap();
    fs::write(&path, "012").unwrap();
    let sent: io::Result<Vec<Bytes>> = pieces(file, 0, 10).try_collect().await;
    assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}
