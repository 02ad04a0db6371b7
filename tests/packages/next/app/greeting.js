"use client";
import { useEffect, useState } from "react";
import { greet } from "./greet.js";

export function Greeting({ codes }) {
  const [answer, setAnswer] = useState("waiting");
  useEffect(() => {
    greet().then(setAnswer, (error) => setAnswer(`${error.code}: ${error.message}`));
  }, []);
  useEffect(() => {
    if (answer !== "waiting") document.title = codes > 0 ? answer : "no codes";
  }, [answer, codes]);
  return <p>{answer}</p>;
}
