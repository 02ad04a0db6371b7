use std::{
    future::pending,
    path::{Path, PathBuf},
};

use futures::{AsyncWriteExt as _, FutureExt as _};

use super::{super::tests::tokio_pipe::pair, send::is_changed, *};

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn inbox(directory: &Path, max_size: u64) -> Inbox {
    let directory = directory.to_owned();
    Inbox {
        directory,
        max_size,
        active: active::Active::default(),
    }
}

fn source(path: &Path) -> Source {
    source::find(&[path.to_owned()], None).unwrap().0.remove(0)
}

type Received = Result<(PathBuf, Transferred), Error>;

async fn transfer(
    source: &Source,
    inbox: &Inbox,
    version: Version,
    fresh: bool,
) -> (Result<Transferred, Error>, Received) {
    let ((reader, writer), (their_reader, their_writer)) = pair();
    let resumes = version == Version::Resumed;
    tokio::join!(
        send(reader, writer, source, version, fresh, |_| {}),
        receive(
            their_reader,
            their_writer,
            inbox,
            resumes,
            pending(),
            |_, _| {}
        ),
    )
}

#[tokio::test]
async fn files_arrive_whole_and_replace_none() {
    let home = tempfile::tempdir().unwrap();
    let (source, inbox) = (home.path().join("a.bin"), home.path().join("inbox"));
    for size in [0, 1, CHUNK, 300_001] {
        let bytes: Vec<u8> = (0..size).map(|n| (n * 7) as u8).collect();
        std::fs::write(&source, &bytes).unwrap();
        let inbox = self::inbox(&inbox, u64::MAX);
        let (sent, received) =
            transfer(&self::source(&source), &inbox, Version::Whole, false).await;
        let (path, received) = received.unwrap();
        assert_eq!(sent.unwrap(), received);
        assert_eq!(received.sha256, HEXLOWER.encode(&Sha256::digest(&bytes)));
        assert_eq!(std::fs::read(path).unwrap(), bytes);
    }
    assert_eq!(
        files(&inbox),
        ["a (2).bin", "a (3).bin", "a (4).bin", "a.bin"]
    );
}

#[tokio::test]
async fn too_large_is_refused_at_its_edge_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (source, inbox) = (home.path().join("a"), home.path().join("inbox"));
    std::fs::create_dir(&inbox).unwrap();
    std::fs::write(&source, vec![1; 100_000]).unwrap();
    let (small, large) = (self::inbox(&inbox, 99_999), self::inbox(&inbox, 100_000));
    let source = self::source(&source);
    let (sent, received) = transfer(&source, &small, Version::Whole, false).await;
    assert_eq!(received.unwrap_err().kind(), ErrorKind::LimitExceeded);
    let error = sent.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.message().contains("99999"), "{error}");
    assert!(files(&inbox).is_empty());
    transfer(&source, &large, Version::Whole, false)
        .await
        .1
        .unwrap();
}

async fn raw(bytes: &[u8], inbox: &Path) -> (Error, Reply) {
    let inbox = self::inbox(inbox, 1000);
    let ((mut reader, mut writer), (their_reader, their_writer)) = pair();
    let write = async {
        // A refusal may end the reading before all bytes are written.
        let _ = writer.write_all(bytes).await;
        let _ = writer.close().await;
        read_json::<Reply>(&mut reader, "reply").await.unwrap()
    };
    let (reply, received) = tokio::join!(
        write,
        receive(
            their_reader,
            their_writer,
            &inbox,
            false,
            pending(),
            |_, _| {}
        )
    );
    (received.unwrap_err(), reply)
}

#[tokio::test]
async fn what_breaks_the_protocol_is_refused_by_name_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let inbox = home.path();
    let header = |json: &str| {
        let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    };
    let mut wrong_hash = header(r#"{"name":"a","size":1}"#);
    wrong_hash.extend_from_slice(&[0; 33]);
    for (bytes, code) in [
        (header(r#"{"name":"../a","size":1}"#), "bad_name"),
        (header(r#"{"name":"a","size":-1}"#), "bad_header"),
        (header("[]"), "bad_header"),
        (b"\xff\xff\xff\xff".to_vec(), "bad_header"),
        (header(r#"{"name":"a","size":1001}"#), "too_large"),
        (header(r#"{"name":"a","size":1}"#), "cancelled"),
        (wrong_hash, "hash_mismatch"),
    ] {
        let (error, reply) = raw(&bytes, inbox).await;
        assert!(!reply.ok);
        assert_eq!(reply.code.as_deref(), Some(code), "{error}");
        assert!(files(inbox).is_empty(), "{code}");
    }
}

/// Returns different bytes for each place of a file.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| ((n * n) >> 3) as u8).collect()
}

/// Sends a file, and cuts the stream after `most` bytes of it.
async fn interrupted(source: &Source, inbox: &Inbox, most: u64) {
    let ((reader, writer), (their_reader, their_writer)) = pair();
    let (cut, is_cut) = futures::channel::oneshot::channel::<()>();
    let mut cut = Some(cut);
    let sending = send(reader, writer, source, Version::Resumed, false, |sent| {
        if sent >= most {
            drop(cut.take());
        }
    });
    let sending = async move {
        futures::pin_mut!(sending);
        // The stream is dropped with the future, as when the program is killed.
        futures::future::select(sending, is_cut).await;
    };
    let receiving = receive(
        their_reader,
        their_writer,
        inbox,
        true,
        pending(),
        |_, _| {},
    );
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received.unwrap_err().kind(), ErrorKind::StreamReset);
}

#[tokio::test]
async fn whoever_loses_its_place_is_told_and_goes_on_later() {
    let home = tempfile::tempdir().unwrap();
    let (path, directory) = (home.path().join("a.bin"), home.path().join("inbox"));
    std::fs::write(&path, bytes(1_000_000)).unwrap();
    let (source, inbox) = (source(&path), inbox(&directory, u64::MAX));
    let ((reader, writer), (their_reader, their_writer)) = pair();
    let (lose, lost) = futures::channel::oneshot::channel::<()>();
    let (mut lose, lost) = (Some(lose), lost.map(|_| ()));
    let progress = |_: &Header, done| {
        if done >= 300_000 {
            lose.take();
        }
    };
    let (sent, received) = tokio::join!(
        send(reader, writer, &source, Version::Resumed, false, |_| {}),
        receive(their_reader, their_writer, &inbox, true, lost, progress),
    );
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::LimitExceeded);
    assert_eq!(received.unwrap_err().kind(), ErrorKind::LimitExceeded);
    let (sent, _) = transfer(&source, &inbox, Version::Resumed, false).await;
    let resumed = sent.unwrap().resumed;
    assert!(resumed > 0, "{resumed}");
}

#[tokio::test]
async fn a_file_that_was_interrupted_costs_only_the_rest() {
    let home = tempfile::tempdir().unwrap();
    let (path, directory) = (home.path().join("a.bin"), home.path().join("inbox"));
    let content = bytes(1_000_000);
    std::fs::write(&path, &content).unwrap();
    let (source, inbox) = (source(&path), inbox(&directory, u64::MAX));
    interrupted(&source, &inbox, 600_000).await;
    let (sent, received) = transfer(&source, &inbox, Version::Resumed, false).await;
    let (stored, received) = received.unwrap();
    assert_eq!(sent.unwrap(), received);
    assert!(received.resumed > 300_000, "{received:?}");
    assert!(std::fs::read(&stored).unwrap() == content);
    assert_eq!(files(&directory), ["a.bin"], "no part is left");

    // The same file again costs nothing.
    let (sent, received) = transfer(&source, &inbox, Version::Resumed, false).await;
    assert_eq!(sent.unwrap().resumed, 1_000_000);
    assert_eq!(received.unwrap().0, stored);
    assert_eq!(files(&directory), ["a.bin"]);
}

#[tokio::test]
async fn another_file_with_the_same_ends_is_sent_anew() {
    let home = tempfile::tempdir().unwrap();
    let (path, directory) = (home.path().join("a.bin"), home.path().join("inbox"));
    let mut content = bytes(1_000_000);
    std::fs::write(&path, &content).unwrap();
    let (source, inbox) = (source(&path), inbox(&directory, u64::MAX));
    interrupted(&source, &inbox, 600_000).await;
    content[200_000] ^= 1;
    std::fs::write(&path, &content).unwrap();
    for name in ["a.bin", "a (2).bin"] {
        let (sent, _) = transfer(&source, &inbox, Version::Resumed, false).await;
        assert!(is_changed(&sent.unwrap_err()));
        let (sent, received) = transfer(&source, &inbox, Version::Resumed, true).await;
        assert_eq!(sent.unwrap().resumed, 0);
        assert_eq!(received.unwrap().0, directory.join(name));
        assert!(std::fs::read(directory.join(name)).unwrap() == content);
        content[200_001] ^= 1;
        std::fs::write(&path, &content).unwrap();
    }
    assert_eq!(files(&directory), ["a (2).bin", "a.bin"]);
}

#[tokio::test]
async fn folders_are_made_and_lead_nowhere_else() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("inbox");
    std::fs::create_dir_all(home.path().join("photos/b")).unwrap();
    std::fs::write(home.path().join("photos/b/c"), "x").unwrap();
    let mut source = source(&home.path().join("photos"));
    let inbox = inbox(&directory, u64::MAX);
    let (_, received) = transfer(&source, &inbox, Version::Resumed, false).await;
    assert_eq!(received.unwrap().0, directory.join("photos/b/c"));
    source.folders = vec![String::from("..")];
    let (sent, _) = transfer(&source, &inbox, Version::Resumed, false).await;
    let message = sent.unwrap_err().message().to_owned();
    assert!(message.contains("bad_name"), "{message}");
}

#[tokio::test]
async fn a_sender_learns_that_others_have_all_places() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    std::fs::write(&path, "x").unwrap();
    for version in [Version::Whole, Version::Resumed] {
        let ((reader, writer), (_their_reader, their_writer)) = pair();
        let source = source(&path);
        let (sent, turned_away) = tokio::join!(
            send(reader, writer, &source, version, false, |_| {}),
            turn_away(their_writer),
        );
        let error = sent.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        assert!(error.message().contains("busy"), "{error}");
        assert_eq!(turned_away.kind(), ErrorKind::LimitExceeded);
    }
}
