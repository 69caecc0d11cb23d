#!/bin/sh
# Put IMAGE into service: migrate first, then replace. Until the migration is through, nothing that runs is touched.
# Run it in the folder of compose.yaml; with an older IMAGE it goes back.
set -eu
: "${IMAGE:?is the image to put into service}"
export IMAGE

# Else the migration would be another image's.
docker compose config | grep -qF "image: $IMAGE" || {
    echo "No service of compose.yaml has image: \${IMAGE}. Nothing was changed." >&2
    exit 78
}
docker image inspect "$IMAGE" >/dev/null 2>&1 || docker pull "$IMAGE"

# Waits for the database by itself. When it fails, this script ends here, and the old containers go on.
docker compose run --rm -T --entrypoint alembic-entrypoint app migrate

docker compose up --detach --no-build --wait

# For the next `docker compose up`, by hand or after a restart of the server.
umask 077
touch .env
# Not grep, whose failure could not be told from nothing found: .env holds the passwords.
awk '!/^IMAGE=/' .env >.env.new
echo "IMAGE=$IMAGE" >>.env.new
mv .env.new .env
