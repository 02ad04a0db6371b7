//! A web page in Rust, with Yew: it connects to a peer and shows what comes back.
//!
//! ```text
//! throughline serve                        # prints the addresses of a relay
//! throughline listen --echo --relay RELAY  # prints a ticket
//! cargo build --release --target wasm32-unknown-unknown
//! wasm-bindgen --target web --out-dir pkg target/wasm32-unknown-unknown/release/throughline-yew.wasm
//! python3 -m http.server 8080              # the page is http://localhost:8080/#TICKET
//! ```

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use throughline::{Connection, Connector, Error, PathEvent, Ticket};
use web_sys::HtmlInputElement;
use yew::{platform::spawn_local, prelude::*};

/// What the page shows.
#[derive(Clone, Default)]
struct Shown {
    connection: Option<Connection>,
    /// `direct`, `turn` or `relayed`, or why there is no path.
    path: String,
    answers: Vec<String>,
}

enum Change {
    Connected(Connection),
    Path(String),
    Answer(String),
}

impl Reducible for Shown {
    type Action = Change;

    fn reduce(self: std::rc::Rc<Self>, change: Change) -> std::rc::Rc<Self> {
        let mut shown = (*self).clone();
        match change {
            Change::Connected(connection) => shown.connection = Some(connection),
            Change::Path(path) => shown.path = path,
            Change::Answer(answer) => shown.answers.push(answer),
        }
        shown.into()
    }
}

#[component]
fn App() -> Html {
    let shown = use_reducer(Shown::default);
    let text = use_node_ref();

    let dispatch = shown.dispatcher();
    use_effect_with((), |()| {
        spawn_local(async move {
            if let Err(error) = connect(&dispatch).await {
                dispatch.dispatch(Change::Path(error.to_string()));
            }
        });
    });

    let send = {
        let (shown, text) = (shown.clone(), text.clone());
        Callback::from(move |event: SubmitEvent| {
            event.prevent_default();
            let Some((connection, input)) = shown
                .connection
                .clone()
                .zip(text.cast::<HtmlInputElement>())
            else {
                return;
            };
            let (dispatch, text) = (shown.dispatcher(), input.value());
            spawn_local(async move {
                let answer = echo(&connection, &text).await;
                let answer = answer.unwrap_or_else(|error| error.to_string());
                dispatch.dispatch(Change::Answer(answer));
            });
        })
    };

    html! {
        <main>
            <p>{ "Path: " }<output id="path">{ &shown.path }</output></p>
            <form onsubmit={send}>
                <input ref={text} aria-label="Text" placeholder="hello" required=true />
                <button disabled={shown.connection.is_none()}>{ "Send" }</button>
            </form>
            <ul>{ for shown.answers.iter().map(|answer| html! { <li>{ answer }</li> }) }</ul>
        </main>
    }
}

/// Connects to the peer whose ticket is in the address of the page, and follows the path.
async fn connect(shown: &UseReducerDispatcher<Shown>) -> Result<(), Error> {
    let hash = web_sys::window().and_then(|window| window.location().hash().ok());
    let ticket: Ticket = hash.unwrap_or_default().trim_start_matches('#').parse()?;
    // Whoever only connects needs no relay: the ticket names the one to go through.
    let me = Connector::builder().reserve(false).bind().await?;
    let connection = me.connect(&ticket).await?;
    let mut events = connection.path_events();
    if let Some(path) = connection.path() {
        shown.dispatch(Change::Path(path.kind.to_string()));
    }
    shown.dispatch(Change::Connected(connection));
    while let Some(event) = events.next().await {
        match event {
            PathEvent::Changed { path, .. } => shown.dispatch(Change::Path(path.kind.to_string())),
            PathEvent::Lost { .. } => shown.dispatch(Change::Path("lost".to_owned())),
            PathEvent::Closed { kind, .. } => shown.dispatch(Change::Path(kind.to_string())),
            _ => {}
        }
    }
    Ok(())
}

/// Sends a text, and returns what the peer sends back.
async fn echo(connection: &Connection, text: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut stream = connection.open("echo/1").await?;
    stream.write_all(text.as_bytes()).await?;
    stream.close().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn main() {
    yew::Renderer::<App>::new().render();
}
