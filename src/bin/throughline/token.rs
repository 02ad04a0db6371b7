//! `throughline token`: the operator's key, and tokens that it signs.

use serde_json::json;
use throughline::{
    Error,
    server::{NewToken, TokenKey},
};

use crate::{
    args::{NewTokenArgs, TokenCommand, TokenKeyArgs},
    output::Output,
};

pub(crate) fn run(command: TokenCommand, output: Output) -> Result<(), Error> {
    match command {
        TokenCommand::Key(args) => key(&args, output),
        TokenCommand::New(args) => new(args, output),
    }
}

/// Prints the public key, which is a setting of the server.
fn key(args: &TokenKeyArgs, output: Output) -> Result<(), Error> {
    let key = TokenKey::load_or_create(&args.key)?.public();
    output.result("key", json!({ "key": key }), || key.clone());
    Ok(())
}

/// Prints a token, and nothing else, so that a script can take it.
fn new(args: NewTokenArgs, output: Output) -> Result<(), Error> {
    let mut token = NewToken::new(args.name, args.expires.0);
    token.peer = args.peer;
    token.quota = args.quota;
    token.rate = args.rate;
    let token = TokenKey::load_or_create(&args.key.key)?.sign(&token)?;
    let fields = json!({ "token": token, "id": id_of(&token) });
    output.result("token", fields, || token.clone());
    Ok(())
}

/// Returns the id of a token that was just made, by which it can be revoked.
fn id_of(token: &str) -> Option<String> {
    let claims = token.split('.').nth(1)?;
    let claims = data_encoding::BASE64URL_NOPAD
        .decode(claims.as_bytes())
        .ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Some(claims["jti"].as_str()?.to_owned())
}
