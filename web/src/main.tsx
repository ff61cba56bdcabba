import { render } from 'preact';
import { openShared } from './write/shared';
import { App } from './shell/App';
import { watch } from './shell/connection';
import { listen } from './shell/keyboard';
import { watchRestarts } from './shell/restart';
import './styles/page.css';

const root = document.getElementById('app');
if (root) {
  watch();
  watchRestarts();
  listen();
  void openShared();
  render(<App />, root);
}
