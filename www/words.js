// Names made at random: one for a room, and one for each visitor until somebody chooses another.

const tempers = ["amber", "brave", "bright", "calm", "clever", "gentle", "golden", "happy", "jolly", "kind", "lucky", "merry", "quick", "quiet", "silver", "swift"];
const animals = ["badger", "beaver", "crane", "dolphin", "falcon", "fox", "hare", "heron", "lynx", "marten", "otter", "owl", "robin", "seal", "stork", "wren"];
const places = ["bay", "bridge", "brook", "cabin", "canyon", "forest", "garden", "harbor", "island", "lagoon", "meadow", "orchard", "river", "summit", "valley", "village"];

const any = (list) => list[crypto.getRandomValues(new Uint32Array(1))[0] % list.length];
const capital = (word) => word[0].toUpperCase() + word.slice(1);

export const placeName = () => `${any(tempers)}-${any(places)}`;
export const visitorName = () => `${capital(any(tempers))} ${capital(any(animals))}`;
