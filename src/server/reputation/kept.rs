//! The last scores in the data directory, so that they count over a restart.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use multiaddr::PeerId;
use serde::{Deserialize, Serialize};

use super::source::{Ids, MAX_ANSWER, Scores};
use crate::{native::secret, server::config::ReputationConfig};

/// The file in the data directory.
const FILE: &str = "scores.json";
/// The longest file. Numbers and names take no more room there than in an answer.
const MAX_FILE: u64 = 2 * MAX_ANSWER as u64;

/// The file of one source. Scores of another one are not used.
#[derive(Clone)]
pub(super) struct Kept {
    path: PathBuf,
    source: u64,
}

/// Scores, and when their source said that they are true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dated {
    pub(super) scores: Arc<Scores>,
    pub(super) at: SystemTime,
}

/// The file as it stands in JSON, with scores by peer id.
#[derive(Serialize, Deserialize)]
struct Written<S> {
    /// A digest of where the scores come from, which may be a secret.
    source: u64,
    at: u64,
    issued: Option<u64>,
    version: Option<String>,
    peers: S,
    relays: S,
}

impl Kept {
    pub(super) fn new(data: &Path, config: &ReputationConfig) -> Self {
        // The keys of this hasher are always the same.
        let mut hasher = DefaultHasher::new();
        (&config.url, &config.key).hash(&mut hasher);
        Self {
            path: data.join(FILE),
            source: hasher.finish(),
        }
    }

    /// Reads the file. It is long, so an async program calls this from a thread that may block.
    pub(super) fn read(&self) -> Option<Dated> {
        let read = secret::read(&self.path, MAX_FILE);
        let bytes = read.map_err(|fault| fault.describe(&self.path));
        let bytes = bytes.inspect_err(|error| tracing::warn!(error, "the last scores are lost"));
        let bytes = bytes.ok()??;
        let written: Written<Ids> = serde_json::from_slice(&bytes).ok()?;
        let scores = Scores {
            version: written.version,
            issued: written.issued.and_then(time),
            peers: written.peers.0,
            relays: written.relays.0,
        };
        let at = time(written.at)?;
        let dated = Dated {
            scores: Arc::new(scores),
            at,
        };
        (written.source == self.source).then_some(dated)
    }

    /// Writes the file, which only its owner can read. This may take a while, too.
    pub(super) fn write(&self, dated: &Dated) -> io::Result<()> {
        let texts = |scores: &HashMap<PeerId, i32>| -> HashMap<String, i32> {
            let scores = scores.iter();
            scores.map(|(id, score)| (id.to_string(), *score)).collect()
        };
        let Scores {
            version,
            issued,
            peers,
            relays,
        } = &*dated.scores;
        let written = Written {
            source: self.source,
            at: seconds(dated.at),
            issued: issued.map(seconds),
            version: version.clone(),
            peers: texts(peers),
            relays: texts(relays),
        };
        secret::replace(&self.path, &serde_json::to_vec(&written)?)
    }
}

/// Returns a time by its seconds since 1970, if there is such a time.
pub(super) fn time(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_kept_with_their_date_for_their_source_and_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = ReputationConfig {
            url: Some("https://a.example/?s3cret".into()),
            ..ReputationConfig::default()
        };
        let kept = Kept::new(folder.path(), &config);
        assert_eq!(kept.read(), None);
        for issued in [time(70), None] {
            let scores = Scores {
                version: Some("\"7\"".into()),
                issued,
                peers: HashMap::from([(PeerId::random(), -80)]),
                relays: HashMap::from([(PeerId::random(), 7)]),
            };
            let dated = Dated {
                scores: Arc::new(scores),
                at: time(90).unwrap(),
            };
            kept.write(&dated).unwrap();
            assert_eq!(kept.read(), Some(dated));
        }
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        config.url = Some("https://b.example/".into());
        assert_eq!(Kept::new(folder.path(), &config).read(), None);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(kept.read(), None);
    }
}
