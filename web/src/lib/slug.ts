/** Names of sessions, made of the text's first words. */

const LITTLE = new Set(
  'a an and at by for from had in is of on once that the there time to upon was were who with'.split(' '),
);

/** Returns a name like `king-three-4f20c1`, unlikely to be taken: others may begin with the same words. */
export function sessionName(text: string): string {
  const words = text
    .normalize('NFKD')
    .toLowerCase()
    .replace(/[^a-z0-9 ]/g, '')
    .split(/ +/)
    .filter((word) => word && !LITTLE.has(word))
    .slice(0, 3);
  const suffix = Math.floor(Math.random() * 0x1000000)
    .toString(16)
    .padStart(6, '0');
  return [...(words.length > 0 ? words.map((word) => word.slice(0, 24)) : ['text']), suffix].join('-');
}

/** Returns a name for a branch: `king-three-4f20c1.2`, the lowest number that is free. */
export function branchName(root: string, taken: (name: string) => boolean): string {
  for (let n = 2; ; n++) {
    const name = `${root}.${n}`;
    if (!taken(name)) {
      return name;
    }
  }
}
