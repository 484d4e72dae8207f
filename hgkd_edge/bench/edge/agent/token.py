"""The word that marks this connection's lines. Each connection is sent a random one instead."""

TOKEN = ""
