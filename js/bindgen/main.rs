//! Writes the bindings of a WebAssembly file, with the arguments of wasm-bindgen's own program:
//! `wasm-bindgen INPUT --out-dir FOLDER --out-name NAME --target web --omit-default-module-path`.

use anyhow::{Context as _, bail};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> anyhow::Result<()> {
    let mut bindgen = Bindgen::new();
    let mut folder = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--version" => {
                println!("wasm-bindgen {}", env!("CARGO_PKG_VERSION"));
                return Ok(());
            }
            "--out-dir" => folder = Some(value()?),
            "--out-name" => {
                bindgen.out_name(&value()?);
            }
            "--target" if value()? == "web" => {
                bindgen.web(true)?;
            }
            "--omit-default-module-path" => {
                bindgen.omit_default_module_path(true);
            }
            input if !input.starts_with('-') => {
                bindgen.input_path(input);
            }
            _ => bail!("{arg} is not an argument of this program"),
        }
    }
    bindgen
        .typescript(true)
        .generate(folder.context("--out-dir is missing")?)
}
