import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { defineConfig, type Plugin } from 'vite';

/** Where `npm run dev` finds a running server: `SKALD=http://127.0.0.1:8080 npm run dev`. */
const server = process.env['SKALD'] ?? 'http://127.0.0.1:8080';
const paths = ['/v1', '/info', '/metrics', '/readyz', '/tokenize', '/detokenize', '/openapi.json', '/docs'];

/** Writes a compressed copy beside each file of text: the server sends it as it is. */
function compressed(): Plugin {
  return {
    name: 'compressed',
    apply: 'build',
    writeBundle({ dir }) {
      const root = dir ?? 'dist';
      for (const name of readdirSync(root, { recursive: true, encoding: 'utf8' })) {
        if (/\.(html|js|css|svg)$/.test(name)) {
          const path = join(root, name);
          writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: 9 }));
        }
      }
    },
  };
}

export default defineConfig({
  base: '/',
  plugins: [compressed()],
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // Names without a hash: the server lists the files it embeds, and revalidates them by their ETag.
    rollupOptions: {
      output: {
        entryFileNames: 'assets/page.js',
        chunkFileNames: 'assets/[name].js',
        assetFileNames: (asset) => (asset.names[0]?.endsWith('.css') ? 'assets/page.css' : 'assets/[name][extname]'),
      },
    },
  },
  server: {
    proxy: Object.fromEntries(
      paths.map((path) => [path, { target: server, changeOrigin: true, headers: { origin: server } }]),
    ),
  },
});
