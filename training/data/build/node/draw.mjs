// node draw.mjs STYLE …: the styles' options and licences as one line of JSON, then an SVG for each line of options.
import { createInterface } from "node:readline";
import { createAvatar } from "@dicebear/core";

const styles = {};
const described = {};
for (const name of process.argv.slice(2)) {
  const style = (styles[name] = await import(`@dicebear/${name}`));
  const options = Object.entries(style.schema.properties).map(([option, { items, default: initial }]) => [
    option, { values: items?.enum ?? null, initial: initial ?? null }]);
  described[name] = { ...style.meta, options: Object.fromEntries(options) };
}
console.log(JSON.stringify(described));
for await (const line of createInterface({ input: process.stdin })) {
  const { style, options } = JSON.parse(line);
  console.log(JSON.stringify(createAvatar(styles[style], options).toString()));
}
