// The same page with React, in the strict mode that starts every effect twice in development.
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { greet } from "./greet.js";

function Greeting() {
  const [answer, setAnswer] = useState("waiting");
  useEffect(() => {
    greet().then(setAnswer, (error) => setAnswer(`${error.code}: ${error.message}`));
  }, []);
  useEffect(() => {
    if (answer !== "waiting") document.title = answer;
  }, [answer]);
  return <p>{answer}</p>;
}

createRoot(document.body.appendChild(document.createElement("main"))).render(<StrictMode><Greeting /></StrictMode>);
