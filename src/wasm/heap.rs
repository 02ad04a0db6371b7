//! Handlers stay where libp2p puts them: a page has few connections, and each byte of code counts.

pub(crate) type OnHeap<B> = B;

pub(crate) fn on_heap<B>(behaviour: B) -> OnHeap<B> {
    behaviour
}
