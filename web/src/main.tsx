import { render } from 'preact';
import './styles/page.css';

const root = document.getElementById('app');
if (root) {
  render(<p>Skald</p>, root);
}
