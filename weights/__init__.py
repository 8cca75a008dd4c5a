"""Weights on disk: conversion from and to Hugging Face folders, and the proof of it."""
