# The image of operator and transfer Job: one static program, no shell, nobody to run it.
# `cargo xtask image shadow` makes the same without Docker.
FROM rust:1.95-trixie AS build
WORKDIR /source
COPY . .
# Linked statically with the GNU C library, which resolves names without loading anything since 2.34.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
 && RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --package shadow --target "$target" \
 && mkdir -p /image/etc/ssl/certs \
 && install "target/$target/release/shadow" /image/shadow \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && echo 'nonroot:x:65532:65532::/:/nonexistent' > /image/etc/passwd \
 && echo 'nonroot:x:65532:' > /image/etc/group

FROM scratch
COPY --from=build /image/ /
USER 65532:65532
ENTRYPOINT ["/shadow"]
